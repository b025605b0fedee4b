"""Run notebooks in place and keep their outputs.

    python tools/refresh.py nbs/00_unet.ipynb ... [--flags slow]

Cells that nbdev_test skips (`eval: false`, or a flag of `tst_flags` that is not named in --flags)
keep the outputs they have. Stops at the first error, and then leaves the notebook as it was."""
import argparse
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

def refresh(path, flags):
    "Execute the notebook at `path`, in its own folder, and save it with the new outputs."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    path = Path(path).absolute()
    nb = read_nb(path)
    start = time.time()
    os.chdir(path.parent)
    shell = CaptureShell(path='.')
    shell.run_cell('%matplotlib inline')
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code' or skipped(cell, flags): continue
        cell.outputs = run_cell(shell, cell.source)
        cell.execution_count = i
        if shell.exc: sys.exit(f'{path}: cell {i} failed\n{cell.source}\n{shell.exc!r}')
    write_nb(nb, path)
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
