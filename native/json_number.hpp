// Numbers as JSON, in the digits of the full server.
#pragma once

#include <string>

namespace widedeep {

// The shortest digits that mean the number: 0.00001 and 1e16 are the first on either side.
void append_number(double value, std::string& out);

}  // namespace widedeep
