"What the tests share: the tree as a clone has it, copies of it, and processes that neither read nor write the developer's home."
import os, shutil, subprocess, sys
from contextlib import contextmanager
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

def tree():
    "The files of the repository, relative to its top, with those that are new but not ignored."
    out = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root, capture_output=True, text=True, check=True)
    return sorted({Path(f) for f in out.stdout.split('\0') if f and os.path.lexists(root/f)})

def notebooks(): return [f for f in tree() if f.suffix == '.ipynb']

def copy_tree(dest):
    "A copy of the repository in the folder `dest`, so that a test can change it."
    for f in tree():
        (dest/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root/f, dest/f, follow_symlinks=False)
    return dest

@contextmanager
def stopped_at(step):
    "Within the block, a training is interrupted when it comes to a step."
    from mnistgen.lab.training import Trainer
    train_step = Trainer.train_step
    def stop(self, batch):
        if self.step == step: raise KeyboardInterrupt
        return train_step(self, batch)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Trainer, 'train_step', stop)
        yield

@pytest.fixture(scope='session')
def env(tmp_path_factory):
    "An environment with a home of its own. IN_TEST is left out, because nbdev_export does nothing where it is set."
    home = tmp_path_factory.mktemp('home')
    keep = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'MPLBACKEND', 'PYTHONPATH')}
    return keep | dict(HOME=str(home), JUPYTER_CONFIG_DIR=str(home), IPYTHONDIR=str(home), MPLCONFIGDIR=str(home), PYTHONDONTWRITEBYTECODE='1')

@pytest.fixture(scope='session')
def run(env):
    "Run this interpreter with some arguments; a failure shows what the process said."
    def _run(*args, cwd=root, env=env, ok=True, timeout=1800, **extra):
        p = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env | extra, capture_output=True, text=True, timeout=timeout)
        if ok and p.returncode: pytest.fail(f'{" ".join(map(str, args))}: exit {p.returncode}\n{p.stdout}\n{p.stderr}', pytrace=False)
        return p
    return _run
