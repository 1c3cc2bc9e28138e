#include "addon/arguments.h"

#include <cmath>
#include <cstring>

namespace chatglm::addon {

namespace {

void expect(bool condition, const char* name, const char* what) {
  if (!condition) throw Error("ERR_INVALID_ARGUMENT", std::string(name) + " must be " + what);
}

template <class Array, class T>
std::vector<T> elements_of(const Napi::Value& value, napi_typedarray_type type, const char* name, const char* what) {
  expect(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == type, name, what);
  const auto array = value.As<Array>();
  return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}

}  // namespace

Napi::Object to_js_object(Napi::Env env, const Error& error) {
  Napi::Object object = Napi::Object::New(env), details = Napi::Object::New(env);
  for (const auto& [name, value] : error.details) {
    if (const auto* number = std::get_if<double>(&value)) {
      details.Set(name, *number);
    } else {
      details.Set(name, std::get<std::string>(value));
    }
  }
  object.Set("code", error.code);
  object.Set("message", error.what());
  object.Set("details", details);
  return object;
}

Napi::Error to_js_error(Napi::Env env, const Error& error) {
  Napi::Error result = Napi::Error::New(env, error.what());
  const Napi::Object facts = to_js_object(env, error);
  result.Set("code", facts.Get("code"));
  result.Set("details", facts.Get("details"));
  return result;
}

std::string string_of(const Napi::Value& value, const char* name) {
  expect(value.IsString(), name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

bool boolean_of(const Napi::Value& value, const char* name) {
  expect(value.IsBoolean(), name, "true or false");
  return value.As<Napi::Boolean>();
}

double number_of(const Napi::Value& value, const char* name) {
  expect(value.IsNumber() && std::isfinite(value.As<Napi::Number>().DoubleValue()), name, "a finite number");
  return value.As<Napi::Number>().DoubleValue();
}

int64_t integer_of(const Napi::Value& value, const char* name, int64_t least, int64_t most) {
  const double number = number_of(value, name);
  if (number != std::floor(number) || number < static_cast<double>(least) || number > static_cast<double>(most)) {
    throw Error("ERR_INVALID_ARGUMENT", std::string(name) + " must be a whole number from " + std::to_string(least) +
                                            " to " + std::to_string(most));
  }
  return static_cast<int64_t>(number);
}

Napi::Object object_of(const Napi::Value& value, const char* name) {
  expect(value.IsObject(), name, "an object");
  return value.As<Napi::Object>();
}

Napi::Array array_of(const Napi::Value& value, const char* name) {
  expect(value.IsArray(), name, "an array");
  return value.As<Napi::Array>();
}

Napi::Function function_of(const Napi::Value& value, const char* name) {
  expect(value.IsFunction(), name, "a function");
  return value.As<Napi::Function>();
}

Napi::Uint8Array bytes_of(const Napi::Value& value, const char* name) {
  expect(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array, name,
         "a Uint8Array");
  return value.As<Napi::Uint8Array>();
}

std::vector<uint32_t> ids_of(const Napi::Value& value, const char* name) {
  return elements_of<Napi::Uint32Array, uint32_t>(value, napi_uint32_array, name, "a Uint32Array");
}

std::vector<float> floats_of(const Napi::Value& value, const char* name) {
  return elements_of<Napi::Float32Array, float>(value, napi_float32_array, name, "a Float32Array");
}

Napi::Value to_ids(Napi::Env env, const std::vector<uint32_t>& ids) {
  Napi::Uint32Array array = Napi::Uint32Array::New(env, ids.size());
  if (!ids.empty()) std::memcpy(array.Data(), ids.data(), ids.size() * sizeof(uint32_t));
  return array;
}

}  // namespace chatglm::addon
