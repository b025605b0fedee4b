"""Write README.md from nbs/index.ipynb, as nbdev_readme would, without Quarto: `python tools/readme.py [--check]`.

With --check it writes nothing, and exits 1 where README.md is not what the notebook says.
Pictures that the notebook shows become files in index_files/. Links to notebooks lead to the notebooks under nbs/."""
import argparse, base64, json, posixpath, re, sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
hidden = {'hide', 'export', 'exporti', 'default_exp', 'echo: false', 'include: false'}

def join(x): return x if isinstance(x, str) else ''.join(x)
def fence(text, lang=''): return f'```{lang}\n{text.rstrip()}\n```'

def relink(text, repo):
    "Make links relative to the top: nbs/ before those relative to the notebook, nothing before those to the repository on its host."
    def fix(m):
        to = m[2]
        if to.startswith(repo): to = to.removeprefix(repo)
        elif not re.match(r'[a-z]+:|[/#]', to): to = posixpath.normpath('nbs/' + to)
        return m[1] + to
    parts = re.split(r'(^```.*?^```|`[^`\n]+`(?!\]))', text, flags=re.M | re.S)      # code stays as it is
    return ''.join(p if i % 2 else re.sub(r'(\]\(|(?:src|href)=")([^)\s"]+)', fix, p) for i, p in enumerate(parts))

def outputs(cell, pictures):
    "The cell's outputs as Markdown; pictures are added to `pictures` and linked."
    for o in cell['outputs']:
        data = o.get('data', {})
        if o['output_type'] == 'stream':
            if o['name'] == 'stdout': yield fence(join(o['text']))
        elif 'text/markdown' in data: yield join(data['text/markdown']).strip()
        elif 'image/png' in data:
            name = f'index_files/{len(pictures)}.png'
            pictures[name] = base64.b64decode(join(data['image/png']))
            yield f'![]({name})'
        elif 'text/plain' in data: yield fence(join(data['text/plain']))

def readme():
    "The files that README.md is made of: {path relative to the top: bytes}."
    ini = ConfigParser(delimiters=['=']); ini.read(root/'settings.ini', encoding='utf-8')
    repo = f"{ini['DEFAULT']['git_url']}/blob/{ini['DEFAULT']['branch']}/"
    blocks, pictures = ['<!-- Made from nbs/index.ipynb by tools/readme.py: edit that. -->'], {}
    for cell in json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']:
        source = join(cell['source'])
        if cell['cell_type'] == 'markdown': blocks.append(relink(source.strip(), repo))
        if cell['cell_type'] != 'code': continue
        directives = re.findall(r'^#\|\s*(.+?)\s*$', source, re.M)
        source = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
        quiet = {d.split()[0] if d.split()[0] in hidden else d for d in directives} & hidden
        if source and not quiet: blocks.append(fence(source, 'python'))
        if not quiet or quiet == {'echo: false'}: blocks += outputs(cell, pictures)
    return {'README.md': ('\n\n'.join(b for b in blocks if b) + '\n').encode(), **pictures}

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true', help='write nothing; exit 1 where README.md is stale')
    check, files = p.parse_args().check, readme()
    stale = [f for f, data in files.items() if not (root/f).exists() or (root/f).read_bytes() != data]
    if check: sys.exit(f'{", ".join(stale)}: not what nbs/index.ipynb says; run python tools/readme.py' if stale else 0)
    for f in stale: (root/f).parent.mkdir(exist_ok=True); (root/f).write_bytes(files[f]); print(f'wrote {f}')
