"""Files that would run code when read: each leaves a marker file behind as soon as a careless
reader unpickles it.

BOMBS: name -> function of the marker's path that gives an object; `plant` writes one as a
stranger's checkpoint, in any of FORMS and PLACES. A reader that sets one off has made the marker.
"""

import argparse
import collections
import functools
import importlib
import io
import operator
import os
import pickle
import runpy
import shlex
import shutil
import subprocess
import types
import zipfile

import numpy as np
import torch


class Call:
    """Calls function(*arguments) when it is unpickled; both may be `Call`s."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        raise AssertionError("a bomb is called by pickle alone")


class Stateful:
    """Makes the marker when its state is set."""

    def __init__(self, path):
        self.path = str(path)

    def __setstate__(self, state):
        touch(state["path"])


class Disguised(argparse.Namespace):
    """The same, and a Namespace by its base."""

    __setstate__ = Stateful.__setstate__


class Filled:
    """Makes the marker when pickle puts items into it, as into a list or as into a dict."""

    def __init__(self, items=(), pairs=()):
        self.items, self.pairs = items, pairs

    def __reduce__(self):
        return Filled, (), None, iter(self.items), iter(self.pairs)

    def append(self, path):
        touch(path)

    def extend(self, paths):
        touch(*paths)

    def __setitem__(self, key, path):
        touch(path)


def touch(path):
    with open(path, "w"):
        pass


def shell(path):
    return f"touch {shlex.quote(str(path))}"


def source(path):
    return f"open({str(path)!r}, 'w').close()"


def program(path):
    """A zip file beside the marker that holds a program, by its name."""
    zipped = path.with_name("program.zip")
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("__main__.py", source(path))
    return str(zipped)


def os_system(path):
    return Call(os.system, shell(path))


def bytes_of(write, content):
    file = io.BytesIO()
    write(file, content)
    return file.getvalue()


def stream(write, content):
    """A `Call` that gives a file open for reading, which holds `content`."""
    return Call(io.BytesIO, bytes_of(write, content))


def objects(content):
    """A numpy array that holds an object."""
    array = np.empty(1, dtype=object)
    array[0] = content
    return array


OS = Call(importlib.import_module, "os")
BOMBS = {
    "os.system": os_system,
    "os.mkdir": lambda path: Call(os.mkdir, str(path)),
    "os.spawn": lambda path: Call(os.spawnlp, os.P_WAIT, "touch", "touch", str(path)),
    "subprocess.call": lambda path: Call(subprocess.call, ["touch", str(path)]),
    "subprocess.getoutput": lambda path: Call(subprocess.getoutput, shell(path)),
    "eval": lambda path: Call(eval, source(path)),
    "exec": lambda path: Call(exec, source(path)),
    "a code object": lambda path: Call(exec, Call(compile, source(path), "x", "exec")),
    "open": lambda path: Call(open, str(path), "w"),
    "open and write": lambda path: Call(
        Call(getattr, Call(open, str(path), "w"), "write"), "written"
    ),
    "io.FileIO": lambda path: Call(io.FileIO, str(path), "w"),
    "shutil.copyfile": lambda path: Call(shutil.copyfile, __file__, str(path)),
    "getattr": lambda path: Call(Call(getattr, OS, "system"), shell(path)),
    "map": lambda path: Call(list, Call(map, os.system, [shell(path)])),
    "functools.partial": lambda path: Call(functools.partial(os.system, shell(path))),
    "operator.methodcaller": lambda path: Call(operator.methodcaller("system", shell(path)), OS),
    "operator.attrgetter": lambda path: Call(Call(operator.attrgetter("system"), OS), shell(path)),
    "runpy.run_path": lambda path: Call(runpy.run_path, program(path)),
    "torch.save": lambda path: Call(torch.save, {}, str(path)),
    "torch.load": lambda path: Call(
        functools.partial(torch.load, weights_only=False),
        stream(lambda f, x: torch.save(x, f), os_system(path)),
    ),
    "pickle.load": lambda path: Call(
        pickle.load, stream(lambda f, x: pickle.dump(x, f), os_system(path))
    ),
    "numpy.load": lambda path: Call(
        functools.partial(np.load, allow_pickle=True), stream(np.save, objects(os_system(path)))
    ),
    "numpy.ndarray.tofile": lambda path: Call(
        operator.methodcaller("tofile", str(path)), np.ones(3)
    ),
    "an array of objects": lambda path: objects(os_system(path)),
    "deep inside": lambda path: {"a": [({"b": (os_system(path),)},)]},
    "a call in a call": lambda path: Call(
        str, Call(repr, Call(len, Call(list, Call(map, os.system, [shell(path)]))))
    ),
    "a key": lambda path: Call(dict, [(os_system(path), 1)]),
    "beside a tensor": lambda path: [torch.ones(2), os_system(path)],
    "in a Namespace": lambda path: argparse.Namespace(nhead=os_system(path)),
    "in an OrderedDict": lambda path: collections.OrderedDict(x=os_system(path)),
    "in a SimpleNamespace": lambda path: types.SimpleNamespace(x=os_system(path)),
    "a subclass of Namespace": lambda path: Disguised(path=str(path)),
    "__setstate__": Stateful,
    "append": lambda path: Filled(items=[str(path)]),
    "__setitem__": lambda path: Filled(pairs=[(1, str(path))]),
}
FORMS = {
    "zip": lambda content, path: torch.save(content, path),
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "bare pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    "text pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=0)),
}
PLACES = {  # where in a checkpoint it lies
    "all of it": lambda bomb: bomb,
    "our options": lambda bomb: {"format": "hrem-1", "model": {}, "options": {"nhead": bomb}},
    "published options": lambda bomb: {
        "model": [{}, {}],
        "opt": argparse.Namespace(nhead=bomb),
        "epoch": 1,
    },
    "a weight": lambda bomb: {"model": [{"fc.fc.weight": bomb}, {}], "opt": argparse.Namespace()},
    "an entry that nothing reads": lambda bomb: {
        "model": [{}, {}],
        "opt": argparse.Namespace(),
        "x": bomb,
    },
}


def plant(path, bomb, marker, form="zip", place="all of it"):
    """Write the bomb of that name to `path`; set off, it makes `marker`."""
    FORMS[form](PLACES[place](BOMBS[bomb](marker)), path)
