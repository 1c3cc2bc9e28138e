#pragma once
#include <cstdio>
#include <cstdlib>

/// Ends the process, which libFuzzer reports with the input, if a property does not hold.
#define EXPECT(condition)                                                            \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                  \
    }                                                                                \
  } while (false)
