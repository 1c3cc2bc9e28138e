#include "base/error.h"

#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>

namespace chatglm {

Error file_error(const std::string& path, const char* what, int number) {
  const char* code = "ERR_IO";
  switch (number) {
    case ENOENT:
    case ENOTDIR: code = "ERR_CHECKPOINT_NOT_FOUND"; break;
    case EACCES:
    case EPERM: code = "ERR_PERMISSION_DENIED"; break;
    case EMFILE:
    case ENFILE: code = "ERR_TOO_MANY_FILES"; break;
    case ENOMEM: code = "ERR_OUT_OF_MEMORY"; break;
    default: break;
  }
  return Error(code, path + ": cannot be " + what + ": " + std::strerror(number), {{"file", path}});
}

Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error("ERR_OUT_OF_MEMORY", "there is not enough memory");
  } catch (const std::system_error& error) {
    // pthread_create() gives this number at a limit of threads, and when there is no memory for the thread's stack.
    if (error.code() == std::errc::resource_unavailable_try_again)
      return Error("ERR_THREAD_UNAVAILABLE", std::string("the system gave no thread: ") + error.what());
    return Error("ERR_INTERNAL", error.what());
  } catch (const std::exception& error) {
    return Error("ERR_INTERNAL", error.what());
  } catch (...) {
    return Error("ERR_INTERNAL", "an exception of an unknown class");
  }
}

}  // namespace chatglm
