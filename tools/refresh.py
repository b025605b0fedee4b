"""Run notebooks in place and keep their outputs.

    python tools/refresh.py nbs/00_unet.ipynb ... [--flags slow]

Cells that nbdev_test skips (`eval: false`, or a flag of `tst_flags` that is not named in --flags)
keep the outputs they have. Stops at the first error, and then leaves the notebook as it was.

Notes in nbs/outputs.json which stored results and which bundled files the notebook has read, with
hashes of them: where one has changed since, a test asks for the notebook to be refreshed."""
import argparse
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

def skipped(cell, flags):
    "Is `cell` one that does not run, given the flags that are excluded?"
    directives = re.findall(r'^#\|\s*(.+?)\s*$', cell.source, re.M)
    return 'eval: false' in directives or any(d in flags for d in directives)

def run_cell(shell, source):
    """The outputs of `source`, as JupyterLab has them.

    A `;` at its end hides the value of the cell. execnb would drop what the cell prints, too."""
    if not source.rstrip().endswith(';'): return shell.run(source)
    return [o for o in shell.run(source + '\n#') if o['output_type'] != 'execute_result']

top = Path(__file__).resolve().parent.parent
NOTED = top/'nbs'/'outputs.json'
WATCHED = top/'results', top/'mnistgen'/'weights'

def noting(read):
    "From now on, put the files of WATCHED that this process reads into the set `read`."
    import safetensors
    def note(path):
        path = Path(os.path.abspath(path))
        if path.parent in WATCHED and not path.name.startswith('.'): read.add(path)
    def hook(event, args):
        reads = event == 'open' and isinstance(args[0], (str, os.PathLike)) and args[1] is not None
        if reads and not set(args[1]) & set('wax+'): note(args[0])
    sys.addaudithook(hook)
    safe_open = safetensors.safe_open     # which opens files by itself
    def noted_open(path, *args, **kwargs):
        note(path)
        return safe_open(path, *args, **kwargs)
    safetensors.safe_open = noted_open

def digest(path): return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()

def keep_note(nb, read):
    "Say in nbs/outputs.json what the outputs of a notebook are made from."
    noted = json.loads(NOTED.read_text()) if NOTED.exists() else {}
    found = {p.relative_to(top).as_posix(): digest(p) for p in sorted(read) if p.exists()}
    noted[Path(nb).relative_to(top/'nbs').as_posix()] = found
    noted = {k: v for k, v in sorted(noted.items()) if v and (top/'nbs'/k).exists()}
    NOTED.write_text(json.dumps(noted, indent=1) + '\n')

def refresh(path, flags):
    "Execute the notebook at `path`, in its own folder, and save it with the new outputs."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    path = Path(path).absolute()
    nb = read_nb(path)
    start, read = time.time(), set()
    noting(read)
    os.chdir(path.parent)
    shell = CaptureShell(path='.')
    shell.run_cell('%matplotlib inline')
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code' or skipped(cell, flags): continue
        cell.outputs = run_cell(shell, cell.source)
        cell.execution_count = i
        if shell.exc: sys.exit(f'{path}: cell {i} failed\n{cell.source}\n{shell.exc!r}')
    write_nb(nb, path)
    if path.is_relative_to(top/'nbs'): keep_note(path, read)
    print(f'{path.name}: {time.time() - start:.0f} s', flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebooks', nargs='+')
    p.add_argument('--flags', default='', help='flags to run all the same, such as slow')
    a = p.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from nbdev.config import get_config
    excluded = set(get_config().tst_flags.split()) - set(a.flags.split())
    for nb in a.notebooks:
        pid = os.fork()             # one process a notebook, so that none sees another's state
        if pid == 0:
            refresh(nb, excluded)
            os._exit(0)
        if os.waitpid(pid, 0)[1]: sys.exit(1)

if __name__ == '__main__': main()
