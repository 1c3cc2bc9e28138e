#pragma once
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace chatglm {

/// An error that reaches the user as a ChatGLMError: a stable code (see lib/common/errors.ts), a sentence, and
/// the numbers and names that explain it.
class Error : public std::runtime_error {
 public:
  using Details = std::vector<std::pair<std::string, std::variant<double, std::string>>>;

  Error(std::string code, const std::string& message, Details details = {})
      : std::runtime_error(message), code(std::move(code)), details(std::move(details)) {}

  std::string code;
  Details details;
};

/// What the system says of a file, by the number that errno has after a failed call. Such as "<path>: cannot be opened:
/// Permission denied", with `what` = "opened". Codes: ERR_CHECKPOINT_NOT_FOUND, ERR_PERMISSION_DENIED,
/// ERR_TOO_MANY_FILES, ERR_OUT_OF_MEMORY, else ERR_IO.
Error file_error(const std::string& path, const char* what, int number);

/// The exception that is being handled, of whatever class: call it in a catch block. Beside Error, the standard library
/// throws std::bad_alloc (ERR_OUT_OF_MEMORY) and, when a thread cannot be started, std::system_error
/// (ERR_THREAD_UNAVAILABLE); anything else is a defect (ERR_INTERNAL).
Error current_error();

}  // namespace chatglm
