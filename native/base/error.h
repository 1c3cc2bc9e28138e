#pragma once
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace chatglm {

/// An error that reaches the user as a ChatGLMError: a stable code (see lib/common/errors.ts), a sentence, and the
/// numbers and names that explain it.
class Error : public std::runtime_error {
 public:
  using Details = std::vector<std::pair<std::string, std::variant<double, std::string>>>;

  Error(std::string code, const std::string& message, Details details = {})
      : std::runtime_error(message), code(std::move(code)), details(std::move(details)) {}

  std::string code;
  Details details;
};

}  // namespace chatglm
