/* Calls from Python, by the stable ABI (PEP 384), whose names are declared here: the headers of Python
   needn't be installed. Included behind the model's own functions: `run`, and these numbers: INPUTS,
   OUTPUTS, ROW_BYTES (of each input, then of each output), ARENA_BYTES, and LONG_ROWS, the number of
   rows from which other threads of Python may run meanwhile. */

typedef struct _object PyObject;
typedef long Py_ssize_t;
typedef struct {
  void *buf;
  PyObject *obj;
  Py_ssize_t len, itemsize;
  int readonly, ndim;
  char *format;
  Py_ssize_t *shape, *strides, *suboffsets;
  void *internal;
} Py_buffer;
typedef struct {
  const char *name;
  void *function;
  int flags;
  const char *doc;
} PyMethodDef;

extern PyObject _Py_NoneStruct;
extern PyObject *PyExc_ValueError;
extern PyObject *PyCFunction_NewEx(PyMethodDef *, PyObject *, PyObject *);
extern PyObject *PyCapsule_New(void *, const char *, void (*)(PyObject *));
extern void *PyCapsule_GetPointer(PyObject *, const char *);
extern int PyCapsule_SetContext(PyObject *, void *);
extern void *PyCapsule_GetContext(PyObject *);
extern int PyObject_GetBuffer(PyObject *, Py_buffer *, int);
extern void PyBuffer_Release(Py_buffer *);
extern void PyErr_SetString(PyObject *, const char *);
extern PyObject *PyErr_Format(PyObject *, const char *, ...);
extern void *PyMem_Malloc(unsigned long);
extern void PyMem_Free(void *);
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *);
extern void Py_IncRef(PyObject *);
extern void Py_DecRef(PyObject *);

#define NAME "hasten.call"
#define TAKES_NOTHING 4
#define TAKES_MANY 128

static void run_checked(const struct call *call) {
#ifdef UNKNOWN
  const int unknown = nan_given(call); /* before, so that the model then finds the input in the cache */
  run(call);
  if (unknown) nan_answered(call);
#else
  run(call);
#endif
}

/* Answer; 0 with an error of the class `refused` where the request names a place beyond a tensor, or divides by 0. */
static int go(struct call *call, PyObject *refused) {
  i64 beyond[2] = {0}; /* such a place, and the size of the axis, which is never 0; -1 for a division */
  call->beyond = beyond;
  if (call->rows >= LONG_ROWS) {
    void *thread = PyEval_SaveThread();
    run_checked(call);
    PyEval_RestoreThread(thread);
  } else {
    run_checked(call);
  }
  if (beyond[1] < 0)
    PyErr_SetString(refused, "the model divides a whole number by 0 for this request: give other numbers");
  else if (beyond[1])
    PyErr_Format(refused, "the model looks up place %lld of %lld for this request: give numbers for which its places are from %lld to %lld",
                 beyond[0], beyond[1], -beyond[1], beyond[1] - 1);
  return !beyond[1];
}

static PyObject *none(void) {
  Py_IncRef(&_Py_NoneStruct);
  return &_Py_NoneStruct;
}

/* What a function keeps: its call; the errors that it raises, the second one for a request's numbers; the number
   that says whether the model was closed, and whether a thread runs it, which only the holder of the interpreter's
   lock reads and writes. */
struct kept {
  struct call call;
  PyObject *error, *refused;
  const int *closed;
  int busy;
};

/* A function without arguments, bound to its arrays. */
static PyObject *again(PyObject *self, PyObject *nothing) {
  struct kept *kept = PyCapsule_GetPointer(self, NAME);
  if (!kept) return 0;
  if (*kept->closed | kept->busy) {
    PyErr_SetString(kept->error, kept->busy
                                     ? "another thread is running this call: bind one call for each thread"
                                     : "the bundle is closed: load it again");
    return 0;
  }
  kept->busy = 1;
  const int fine = go(&kept->call, kept->refused);
  kept->busy = 0;
  return fine ? none() : 0;
}

/* A function of the inputs' arrays and then the outputs', each contiguous; sizes are checked here. */
static PyObject *answer(PyObject *self, PyObject *const *arrays, Py_ssize_t count) {
  const struct kept *bound = PyCapsule_GetPointer(self, NAME);
  if (!bound) return 0;
  if (count != INPUTS + OUTPUTS) {
    PyErr_SetString(PyExc_ValueError, "give an array for each input and each output");
    return 0;
  }
  struct call call = bound->call;
  Py_buffer views[INPUTS + OUTPUTS];
  Py_ssize_t held = 0;
  int fine = 1;
  for (; held < count; held++) {
    Py_buffer *view = &views[held];
    if (PyObject_GetBuffer(arrays[held], view, held >= INPUTS)) { fine = 0; break; }
    if (held == 0) call.rows = view->len / ROW_BYTES[0];
    if (call.rows < 0 || view->len != call.rows * ROW_BYTES[held] || (!BY_ROW && call.rows != 1)) {
      PyErr_SetString(PyExc_ValueError, "an array hasn't the size that the model takes");
      held++;
      fine = 0;
      break;
    }
    if (held < INPUTS) call.in[held] = view->buf;
    else call.out[held - INPUTS] = view->buf;
  }
  if (fine) fine = go(&call, bound->refused);
  while (held) PyBuffer_Release(&views[--held]);
  return fine ? none() : 0;
}

static void forget(PyObject *capsule) {
  PyObject *kept = PyCapsule_GetContext(capsule);
  PyMem_Free(PyCapsule_GetPointer(capsule, NAME));
  if (kept) Py_DecRef(kept);
}

static PyMethodDef again_method = {"again", again, TAKES_NOTHING, "Answer once more, from and to the bound arrays."};
static PyMethodDef answer_method = {"answer", answer, TAKES_MANY, "Answer from arrays to arrays."};

/* Return one of the two functions.

   kept: object that lives as long as the function does, and keeps the memory.
   in, out: addresses of the arrays; rows: their number. All are 0 for the function of arrays.
   team: threads that answer together, which `kept` keeps; 0 for the caller alone.
   error: class of the errors of the function without arguments; closed: not 0 once it is to refuse.
   refused: class of the errors of both for a request's numbers. */
__attribute__((visibility("default"))) PyObject *hasten_bind(
    PyObject *kept, void **in, void **out, long rows, u8 *arena, const u8 *weights,
    PyObject *error, const int *closed, struct team *team, PyObject *refused) {
  struct kept *own = PyMem_Malloc(sizeof(struct kept));
  if (!own) return none();
  own->error = error;
  own->refused = refused;
  own->closed = closed;
  own->busy = 0;
  struct call *call = &own->call;
  for (int i = 0; i < INPUTS; i++) call->in[i] = in ? in[i] : 0;
  for (int i = 0; i < OUTPUTS; i++) call->out[i] = out ? out[i] : 0;
  call->rows = rows;
  call->arena = arena;
  call->weights = weights;
  call->team = team;
  PyObject *capsule = PyCapsule_New(own, NAME, forget);
  if (!capsule) { PyMem_Free(own); return 0; }
  Py_IncRef(kept);
  PyCapsule_SetContext(capsule, kept);
  PyObject *function = PyCFunction_NewEx(in ? &again_method : &answer_method, capsule, 0);
  Py_DecRef(capsule);
  return function;
}
