#include <cstring>
#include <memory>
#include <string>

#include "check.hpp"
#include "fingerprint.hpp"

using widedeep::fingerprint64;

namespace {

constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz0123456789";

std::string repeated_alphabet(std::size_t length) {
  std::string text;
  while (text.size() < length) text += kAlphabet;
  return text.substr(0, length);
}

}  // namespace

TEST(fingerprints_are_those_of_tensorflow) {
  const struct {
    std::size_t length;
    std::uint64_t expected;
  } vectors[] = {
      {0, 11160318154034397263U},  {1, 12917804110809363939U},  {3, 2640714258260161385U},
      {4, 1897425971756105985U},   {7, 4341691227789030229U},   {8, 18368443631171807497U},
      {16, 6080716761534418621U},  {17, 11394395984755135400U}, {32, 934449955909727258U},
      {33, 17626719820827885067U}, {64, 3646545258579766308U},  {65, 13112763581500850699U},
      {100, 11081568295379480721U}};
  for (const auto& [length, expected] : vectors) {
    CHECK(fingerprint64(repeated_alphabet(length).data(), length) == expected);
  }
}

TEST(a_fingerprint_reads_no_byte_outside_the_text_wherever_it_lies) {
  const std::string text = repeated_alphabet(300);
  for (std::size_t length = 0; length <= text.size(); ++length) {
    const std::uint64_t expected = fingerprint64(text.data(), length);
    for (std::size_t shift = 0; shift < 3; ++shift) {
      // An allocation that ends with the text: a sanitizer sees a read past it.
      const std::unique_ptr<char[]> copy(new char[length + shift]);
      std::memcpy(copy.get() + shift, text.data(), length);
      CHECK(fingerprint64(copy.get() + shift, length) == expected);
    }
  }
}
