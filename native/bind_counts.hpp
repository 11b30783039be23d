// Counted keys of Python, checked.
#pragma once

#include <optional>

#include "bind_arrays.hpp"
#include "count_table.hpp"

namespace widedeep {

// Throws where offsets do not ascend within the data, a key is too long or a count negative.
CountedKeys counted_keys(const Input& data, const Input& offsets,
                         const std::optional<Input>& counts);

}  // namespace widedeep
