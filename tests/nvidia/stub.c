/* Stands in for TensorRT's libraries: enough to import NVIDIA's own Python module, and to answer what it asks.

   Every function gives `value`: NULL, a number, or `object`, a C++ object whose every virtual function does the same.
   Its address ends in a zero byte, so that it is false where a bool is expected. */
#include <stddef.h>

enum { FUNCTIONS = 512, WORDS = 64, ARGUMENTS = 4 };

extern char _ZTIi[]; /* some type_info: pybind11 asks for the type of what it gets */
static void *table[2 + FUNCTIONS];
static void *object[WORDS] __attribute__((aligned(256)));
static void *value, *arguments[ARGUMENTS];

static void *answer(void *self, void *a, void *b, void *c) {
  arguments[0] = self;
  arguments[1] = a;
  arguments[2] = b;
  arguments[3] = c;
  return value;
}

__attribute__((constructor)) static void fill(void) {
  table[1] = _ZTIi;
  for (int i = 0; i < FUNCTIONS; i++) table[2 + i] = (void *)answer;
  object[0] = table + 2;
  object[1] = object; /* the implementation that its inline functions call */
}

void *stub_object(void) { return object; }
void stub_answer(void *v) { value = v; }
void *stub_argument(int i) { return arguments[i]; }

/* Calls a virtual function of an object that Python code derived, as TensorRT's threads do. */
size_t stub_call(void *self, int function, void *a, void *b, void *c) {
  return (size_t)(*(void *(***)(void *, void *, void *, void *))self)[function](self, a, b, c);
}

#define MAKES(name) \
  void *name(void *a, void *b, void *c) { return answer(NULL, a, b, c); }
MAKES(createInferBuilder_INTERNAL)
MAKES(createInferRefitter_INTERNAL)
MAKES(createInferRuntime_INTERNAL)
MAKES(createNvOnnxParser_INTERNAL)
MAKES(createNvOnnxParserRefitter_INTERNAL)
MAKES(getBuilderPluginRegistry)
MAKES(getPluginRegistry)
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 1; }
