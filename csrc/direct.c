/*
** direct.c - Python's functions called through its own C interface.
**
** A trampoline of cffi (callbacks.c) costs two to five times what a call of a function does, and functions
** and comparisons are called for every row. So what is plain is done here: arguments of SQLite's five types, a
** result of Python's four. Everything else (exceptions, other results, text that is not UTF-8) goes to
** functions of _native/callbacks.py, which know what is to become of it; a Python that has no such interface
** (PyPy) does without this file.
**
** All references to objects are borrowed from the Callback that Python keeps for as long as SQLite may call
** (functions.c): a reference of ours would keep a connection alive that its own functions refer to.
*/
#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif

#include "direct.h"

#include <string.h>

#ifdef PYPY_VERSION

void nl_set_direct(int64_t answer, int64_t failed, int64_t kept)
{
    (void)answer, (void)failed, (void)kept;
}

int64_t nl_direct_call(const nl_callable *callable, sqlite3_context *context, int count, sqlite3_value **values)
{
    (void)callable, (void)context, (void)count, (void)values;
    return NL_DIRECT_NOT;
}

int64_t nl_direct_compare(const nl_callable *callable, int n1, const char *text1, int n2, const char *text2)
{
    (void)callable, (void)n1, (void)text1, (void)n2, (void)text2;
    return NL_DIRECT_NOT;
}

void *nl_direct_instance(const nl_callable *callable, int64_t group)
{
    (void)callable, (void)group;
    return NULL;
}

int64_t nl_direct_take(
    const nl_callable *callable, void *instance, int what, int count, sqlite3_value **values)
{
    (void)callable, (void)instance, (void)what, (void)count, (void)values;
    return NL_DIRECT_NOT;
}

#else

static PyObject *direct_answer; /* (callback, result) -> an answer; never raises */
static PyObject *direct_failed; /* (callback, exception) -> an answer; never raises */
static PyObject *direct_kept;   /* the same for collations */
static PyObject *direct_names[2]; /* by NL_GROUP_*; NULL: memory was out */

void nl_set_direct(int64_t answer, int64_t failed, int64_t kept)
{
    direct_answer = (PyObject *)(intptr_t)answer;
    direct_failed = (PyObject *)(intptr_t)failed;
    direct_kept = (PyObject *)(intptr_t)kept;
    PyGILState_STATE state = PyGILState_Ensure();
    /* For ever: there are calls when modules have been emptied. */
    Py_INCREF(direct_answer);
    Py_INCREF(direct_failed);
    Py_INCREF(direct_kept);
    direct_names[NL_GROUP_STEP] = PyUnicode_InternFromString("step");
    direct_names[NL_GROUP_INVERSE] = PyUnicode_InternFromString("inverse");
    PyGILState_Release(state);
}

static PyObject *direct_object(int64_t address)
{
    return (PyObject *)(intptr_t)address;
}

/* What a function of _native/callbacks.py answers. The callback may be taken away meanwhile. */
static int64_t direct_ask(PyObject *function, PyObject *callback, PyObject *about)
{
    Py_INCREF(callback);
    PyObject *result = PyObject_CallFunctionObjArgs(function, callback, about, NULL);
    Py_DECREF(callback);
    int64_t answer = result ? PyLong_AsLongLong(result) : INT64_MIN + NL_ANSWER_RAISED;

    Py_XDECREF(result);
    if (PyErr_Occurred()) { /* a signal handler, between two of its lines */
        PyErr_Clear();
        answer = INT64_MIN + NL_ANSWER_RAISED;
    }
    return answer;
}

/* The answer for the exception that is set. */
static int64_t direct_raised(const nl_callable *callable, PyObject *judge)
{
    PyObject *type, *value, *trace;

    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace) PyException_SetTraceback(value, trace);
    int64_t answer = direct_ask(judge, direct_object(callable->callback), value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return answer;
}

static PyObject *direct_argument(sqlite3_value *value)
{
    switch (sqlite3_value_type(value)) {
    case SQLITE_INTEGER:
        return PyLong_FromLongLong(sqlite3_value_int64(value));
    case SQLITE_FLOAT:
        return PyFloat_FromDouble(sqlite3_value_double(value));
    case SQLITE_TEXT: {
        const char *text = (const char *)sqlite3_value_text(value);
        return text ? PyUnicode_FromStringAndSize(text, sqlite3_value_bytes(value)) : PyErr_NoMemory();
    }
    case SQLITE_BLOB: {
        const char *blob = sqlite3_value_blob(value);
        int n = sqlite3_value_bytes(value);
        return blob || !n ? PyBytes_FromStringAndSize(blob, n) : PyErr_NoMemory();
    }
    default:
        Py_INCREF(Py_None);
        return Py_None;
    }
}

static PyObject *direct_arguments(int count, sqlite3_value **values)
{
    PyObject *arguments = PyTuple_New(count);

    for (int i = 0; arguments && i < count; i++) {
        PyObject *argument = direct_argument(values[i]);
        if (!argument || PyTuple_SetItem(arguments, i, argument)) {
            Py_DECREF(arguments);
            return NULL;
        }
    }
    return arguments;
}

static int64_t direct_result(const nl_callable *callable, sqlite3_context *context, PyObject *result)
{
    if (result == Py_None) return INT64_MIN + NL_ANSWER_NULL;
    if (PyLong_Check(result)) {
        int overflow = 0;
        int64_t value = PyLong_AsLongLongAndOverflow(result, &overflow);
        if (overflow) return direct_ask(direct_answer, direct_object(callable->callback), result);
        sqlite3_result_int64(context, value);
    } else if (PyFloat_Check(result)) {
        sqlite3_result_double(context, PyFloat_AsDouble(result));
    } else if (PyUnicode_Check(result)) {
        Py_ssize_t n = 0;
        const char *text = PyUnicode_AsUTF8AndSize(result, &n);
        if (!text) return direct_raised(callable, direct_failed);
        sqlite3_result_text64(context, text, (sqlite3_uint64)n, SQLITE_TRANSIENT, SQLITE_UTF8);
    } else if (PyBytes_Check(result) && PyBytes_Size(result)) {
        sqlite3_result_blob64(context, PyBytes_AsString(result), (sqlite3_uint64)PyBytes_Size(result),
            SQLITE_TRANSIENT);
    } else {
        return direct_ask(direct_answer, direct_object(callable->callback), result);
    }
    return INT64_MIN + NL_ANSWER_PUT;
}

int64_t nl_direct_call(const nl_callable *callable, sqlite3_context *context, int count, sqlite3_value **values)
{
    if (!direct_answer || !callable->function) return NL_DIRECT_NOT;
    PyGILState_STATE state = PyGILState_Ensure();
    int64_t answer = NL_DIRECT_NOT;
    PyObject *function = direct_object(callable->function);
    PyObject *arguments = direct_arguments(count, values);

    if (arguments) {
        Py_INCREF(function); /* it may be taken away while it runs */
        PyObject *result = PyObject_CallObject(function, arguments);
        answer = result ? direct_result(callable, context, result) : direct_raised(callable, direct_failed);
        Py_XDECREF(result);
        Py_DECREF(function);
        Py_DECREF(arguments);
    } else {
        PyErr_Clear(); /* the trampoline decodes them once more, and tells */
    }
    PyGILState_Release(state);
    return answer;
}

int64_t nl_direct_compare(const nl_callable *callable, int n1, const char *text1, int n2, const char *text2)
{
    if (!direct_answer || !callable->function) return NL_DIRECT_NOT;
    PyGILState_STATE state = PyGILState_Ensure();
    int64_t answer = NL_DIRECT_NOT;
    PyObject *function = direct_object(callable->function);
    PyObject *one = PyUnicode_FromStringAndSize(text1, n1);
    PyObject *two = one ? PyUnicode_FromStringAndSize(text2, n2) : NULL;

    if (two) {
        Py_INCREF(function);
        PyObject *result = PyObject_CallFunctionObjArgs(function, one, two, NULL);
        int overflow = 0;
        if (result) {
            long order = PyLong_AsLongAndOverflow(result, &overflow);
            if (order == -1 && PyErr_Occurred()) {
                PyErr_Clear(); /* no integer: as the sqlite3 module has it, equal */
                order = 0;
            }
            answer = overflow ? overflow : (order > 0) - (order < 0);
        } else {
            answer = direct_raised(callable, direct_kept);
        }
        Py_XDECREF(result);
        Py_DECREF(function);
    } else {
        PyErr_Clear();
    }
    Py_XDECREF(one);
    Py_XDECREF(two);
    PyGILState_Release(state);
    return answer;
}

void *nl_direct_instance(const nl_callable *callable, int64_t group)
{
    if (!direct_answer || !callable->groups || !direct_names[NL_GROUP_STEP] || !direct_names[NL_GROUP_INVERSE]) return NULL;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *key = PyLong_FromLongLong(group);
    PyObject *instance = key ? PyDict_GetItemWithError(direct_object(callable->groups), key) : NULL;

    Py_XDECREF(key);
    if (PyErr_Occurred()) PyErr_Clear();
    PyGILState_Release(state);
    return instance;
}

int64_t nl_direct_take(
    const nl_callable *callable, void *instance, int what, int count, sqlite3_value **values)
{
    PyGILState_STATE state = PyGILState_Ensure();
    int64_t answer = NL_DIRECT_NOT;
    PyObject *method = PyObject_GetAttr(instance, direct_names[what]);
    PyObject *arguments = method ? direct_arguments(count, values) : NULL;

    if (arguments) {
        PyObject *result = PyObject_CallObject(method, arguments);
        answer = result ? INT64_MIN + NL_ANSWER_NULL : direct_raised(callable, direct_failed);
        Py_XDECREF(result);
        Py_DECREF(arguments);
    } else {
        PyErr_Clear();
    }
    Py_XDECREF(method);
    PyGILState_Release(state);
    return answer;
}

#endif
