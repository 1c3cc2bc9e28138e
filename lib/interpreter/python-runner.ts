/**
 * What runs the code in the Python process. A text, not a file: where the package lies is not visible in the sandbox.
 *
 * Requests come on file descriptor 3, a line of JSON each: `{ id, marker, code }`. All that the code prints goes to file
 * descriptor 1; the marker behind it says that nothing more of this piece comes. The reply on file descriptor 3 has the
 * request's id and a status and is only data to the parent. With the argument `filter` the process first lays a filter of
 * system calls on itself, which it reads from file descriptor 4.
 */
export const PYTHON_RUNNER = String.raw`
import sys

def filter_system_calls():
    import ctypes, os
    program = os.read(4, 1 << 16)
    os.close(4)
    class Program(ctypes.Structure):
        _fields_ = [('length', ctypes.c_ushort), ('instructions', ctypes.c_char_p)]
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
    if prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(program) // 8, program)), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), 'system calls cannot be filtered')

def serve():
    import ast, asyncio, inspect, json, linecache, os, traceback, types, warnings

    try:
        import fcntl
        channel = fcntl.fcntl(3, fcntl.F_DUPFD_CLOEXEC, 64)
        output = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 64)
    except ImportError:
        channel, output = os.dup(3), os.dup(1)
    os.close(3)
    own_pid = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding='utf-8', errors='replace', line_buffering=True)
    sys.path.insert(0, os.getcwd())
    sys.argv = ['']
    warnings.filterwarnings('ignore', message='.*non-interactive, and thus cannot be shown')
    module = types.ModuleType('__main__')
    module.__builtins__ = __builtins__
    sys.modules['__main__'] = module
    space = module.__dict__
    counts = {'cell': 0, 'figure': 0}
    loop = None

    def write_all(fd, data):
        while data:
            data = data[os.write(fd, data):]

    def flush():
        for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
            try:
                stream.flush()
            except Exception:
                pass

    def next_figure():
        while True:
            counts['figure'] += 1
            name = 'figure-%d.png' % counts['figure']
            if not os.path.lexists(name):
                return name

    def evaluate(compiled):
        nonlocal loop
        value = eval(compiled, space)
        if compiled.co_flags & inspect.CO_COROUTINE:
            if loop is None or loop.is_closed():
                loop = asyncio.new_event_loop()
                asyncio.set_event_loop(loop)
            value = loop.run_until_complete(value)
        return value

    def show(value):
        if value is None:
            return
        space['_'] = value
        picture = getattr(type(value), '_repr_png_', None)
        data = picture(value) if picture is not None else None
        if isinstance(data, bytes):
            with open(next_figure(), 'wb') as file:
                file.write(data)
        else:
            print(repr(value))

    def save_figures():
        pyplot = sys.modules.get('matplotlib.pyplot')
        if pyplot is None:
            return
        for number in pyplot.get_fignums():
            pyplot.figure(number).savefig(next_figure())
        pyplot.close('all')

    def run(code):
        counts['cell'] += 1
        name = '<cell %d>' % counts['cell']
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        tree = ast.parse(code, name)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        if tree.body:
            evaluate(compile(tree, name, 'exec', flags))
        if last is not None:
            show(evaluate(compile(ast.Expression(last.value), name, 'eval', flags)))
        save_figures()

    def tell(error):
        if os.getpid() != own_pid:
            return
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith('<cell '):
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        sys.stderr.write(''.join(lines))

    def status_of(code):
        try:
            run(code)
            return 'ok'
        except SystemExit as error:
            if error.code is None or error.code == 0:
                return 'ok'
            if not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
            else:
                print('SystemExit: %d' % error.code, file=sys.stderr)
            return 'error'
        except MemoryError as error:
            status = 'memory'
            shown = error
        except BaseException as error:
            status = 'error'
            shown = error
        try:
            tell(shown)
        except BaseException as error:
            try:
                write_all(output, ('%s (its text cannot be shown)\n' % type(shown).__name__).encode('utf-8', 'replace'))
            except MemoryError:
                status = 'memory'
        return status

    def reply(message):
        write_all(channel, (json.dumps(message) + '\n').encode())

    reply({'ready': True})
    pending = b''
    while True:
        parts = [pending]
        while b'\n' not in parts[-1]:
            data = os.read(channel, 1 << 16)
            if not data:
                os._exit(0)
            parts.append(data)
        line, _, pending = b''.join(parts).partition(b'\n')
        parts = None
        request = json.loads(line)
        status = status_of(request['code'])
        if os.getpid() != own_pid:
            flush()
            os._exit(0)
        flush()
        write_all(output, request['marker'].encode())
        reply({'id': request['id'], 'status': status})

if sys.argv[1:] == ['filter']:
    filter_system_calls()
serve()
`;
