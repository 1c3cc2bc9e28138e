#pragma once
#include <napi.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace chatglm::addon {

/// A JavaScript error with the code, message and details of a native one; lib/ makes a ChatGLMError of it.
Napi::Error to_js_error(Napi::Env env, const Error& error);
/// { code, message, details }
Napi::Object to_js_object(Napi::Env env, const Error& error);

/// Runs `body` and turns a native exception into a JavaScript one.
template <class Body>
auto guarded(Napi::Env env, const Body& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_js_error(env, current_error());
  }
}

/// The checks below throw ERR_INVALID_ARGUMENT with a message that names the argument.
std::string string_of(const Napi::Value& value, const char* name);
bool boolean_of(const Napi::Value& value, const char* name);
double number_of(const Napi::Value& value, const char* name);
/// A whole number within [least, most].
int64_t integer_of(const Napi::Value& value, const char* name, int64_t least, int64_t most);
Napi::Object object_of(const Napi::Value& value, const char* name);
Napi::Array array_of(const Napi::Value& value, const char* name);
Napi::Function function_of(const Napi::Value& value, const char* name);
Napi::Uint8Array bytes_of(const Napi::Value& value, const char* name);
std::vector<uint32_t> ids_of(const Napi::Value& value, const char* name);
std::vector<float> floats_of(const Napi::Value& value, const char* name);

/// The choice that the text names. Each choice is a name and what it stands for.
template <class Choice>
Choice choice_of(const Napi::Value& value, const char* name,
                 std::initializer_list<std::pair<const char*, Choice>> choices) {
  const std::string text = string_of(value, name);
  std::string known;
  for (const auto& [choice, result] : choices) {
    if (text == choice) return result;
    known.append(known.empty() ? "'" : ", '").append(choice).append("'");
  }
  throw Error("ERR_INVALID_ARGUMENT", std::string(name) + " is '" + text + "'; this runtime knows " + known);
}

Napi::Value to_ids(Napi::Env env, const std::vector<uint32_t>& ids);

}  // namespace chatglm::addon
