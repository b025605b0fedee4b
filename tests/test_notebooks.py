"Every notebook runs top to bottom, each in a process of its own, without the cells that its flags leave out (tst_flags in settings.ini)."
import pytest
from conftest import notebooks, root

script = '''
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
if __name__ == '__main__':
    ok, _ = test_nb(Path(sys.argv[1]).absolute(), skip_flags=get_config().tst_flags.split(), basepath=Path.cwd())
    sys.exit(not ok)
'''

@pytest.mark.parametrize('notebook', notebooks(), ids=str)
def test_notebook(notebook, run):
    p = run('-c', script, notebook, ok=False)
    if p.returncode: pytest.fail(p.stderr[-8000:] or p.stdout[-8000:], pytrace=False)
