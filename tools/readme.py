"""Write README.md from nbs/index.ipynb, without Quarto: `python tools/readme.py [--check]`.

With --check it writes nothing, and exits 1 where README.md is not what the notebook says.
Pictures that the notebook shows become files in index_files/. Links to notebooks lead to the
notebooks under nbs/. (nbdev's own command would link to pages of the site, and needs Quarto; in
settings.ini, readme_nb names no notebook, so that nbdev leaves README.md alone.)"""
import argparse
import base64
import json
import posixpath
import re
import sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
hidden = {'hide', 'export', 'exporti', 'default_exp', 'echo: false', 'include: false'}

def joined(x): return x if isinstance(x, str) else ''.join(x)
def fence(text, lang=''): return f'```{lang}\n{text.rstrip()}\n```'

def relink(text, repo):
    "`text` with its links, to the repository and relative to nbs/, relative to the top."
    def fix(m):
        to = m[2]
        if to.startswith(repo): to = to.removeprefix(repo)
        elif not re.match(r'[a-z]+:|[/#]', to): to = posixpath.normpath('nbs/' + to)
        return m[1] + to
    link = re.compile(r'(\]\(|(?:src|href)=")([^)\s"]+)')
    parts = re.split(r'(^```.*?^```|`[^`\n]+`(?!\]))', text, flags=re.M | re.S)
    return ''.join(p if i % 2 else link.sub(fix, p) for i, p in enumerate(parts))  # not in code

def outputs(cell, pictures):
    "The cell's outputs as Markdown; pictures are added to `pictures` and linked."
    for o in cell['outputs']:
        data = o.get('data', {})
        if o['output_type'] == 'stream':
            if o['name'] == 'stdout': yield fence(joined(o['text']))
        elif 'text/markdown' in data: yield joined(data['text/markdown']).strip()
        elif 'image/png' in data:
            name = f'index_files/{len(pictures)}.png'
            pictures[name] = base64.b64decode(joined(data['image/png']))
            yield f'![]({name})'
        elif 'text/plain' in data: yield fence(joined(data['text/plain']))

def code_cell(cell, pictures):
    "What the README shows of a code cell: its source, if it is not hidden, and its outputs."
    source = joined(cell['source'])
    directives = re.findall(r'^#\|\s*(.+?)\s*$', source, re.M)
    source = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
    quiet = {d.split()[0] if d.split()[0] in hidden else d for d in directives} & hidden
    if source and not quiet: yield fence(source, 'python')
    if not quiet or quiet == {'echo: false'}: yield from outputs(cell, pictures)

def readme():
    "The files that README.md is made of: {path relative to the top: bytes}."
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    repo = f"{ini['DEFAULT']['git_url']}/blob/{ini['DEFAULT']['branch']}/"
    blocks = ['<!-- Made from nbs/index.ipynb by tools/readme.py: edit that. -->']
    pictures = {}
    for cell in json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'markdown':
            blocks.append(relink(joined(cell['source']).strip(), repo))
        elif cell['cell_type'] == 'code':
            blocks += code_cell(cell, pictures)
    return {'README.md': ('\n\n'.join(b for b in blocks if b) + '\n').encode(), **pictures}

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true',
                   help='write nothing; exit 1 where README.md is stale')
    check = p.parse_args().check
    stale = {f: data for f, data in readme().items()
             if not (root/f).exists() or (root/f).read_bytes() != data}
    if check and stale:
        sys.exit(f'{", ".join(stale)}: not what nbs/index.ipynb says; run python tools/readme.py')
    for f, data in stale.items():
        (root/f).parent.mkdir(exist_ok=True)
        (root/f).write_bytes(data)
        print(f'wrote {f}')

if __name__ == '__main__': main()
