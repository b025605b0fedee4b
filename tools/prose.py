"""Measure the prose of the notebooks: `python tools/prose.py [--at REV] [--long] [NOTEBOOK ...]`.

Prints for each notebook its words, the median length of its sentences in words, and the share of
sentences over 30 words. Prose is what Markdown cells say outside of headings, tables and blocks of
code. A formula or a piece of code counts as one word, a link as the text that one clicks on. With
--at it measures the notebooks of a revision, with --long it prints the long sentences, too."""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

root = Path(__file__).resolve().parent.parent
LONG = 30

# what is no prose, and what replaces it, in this order
MARKUP = [
    (r'(?ms)^```.*?^```', '\n\n'),                                # blocks of code
    (r'(?s)<!--.*?-->', ''),
    (r'(?m)^(#{1,6} |\|).*$', '\n\n'),                            # headings, rows of tables
    (r'(?s)\s*\$\$.*?\$\$[.,;]?\s*', ' FORMULA. '),               # its sentence may go on
    (r'\$[^$]+\$', 'FORMULA'),
    (r'`[^`]+`', 'CODE'),
    (r'!\[[^\]]*\]\([^)]*\)', ''),                                # pictures
    (r'\[([^\]]*)\]\([^)]*\)', r'\1'),                            # links
    (r'</?\w[^>]*>', ''),
    (r'(?m)^>\s?', ''),
    (r'(?m)^\s*([-*]|\d+\.)\s+', '\n\n'),                         # items of a list
    (r'\*\*(Figure|Table) \d+[.:]\*\*', ''),                      # a label is no sentence
    (r'\*+|\b_|_\b', ''),                                         # emphasis
    (r'\b(al|e\.g|i\.e|cf|vs|[Ee]q|[Ff]ig)\.', r'\1'),            # periods that end nothing
]
END = re.compile(r'''(?<=[.!?])['")”’]*\s+(?=['"(“]?[A-Z0-9])''')

def words(sentence): return [w for w in sentence.split() if re.search(r'\w', w)]

def sentences(markdown):
    "The sentences of a text in Markdown."
    for pattern, by in MARKUP: markdown = re.sub(pattern, by, markdown)
    paragraphs = [' '.join(p.split()) for p in re.split(r'\n\s*\n', markdown)]
    return [s for p in paragraphs for s in END.split(p) if re.search(r'[^\W\d_]', s)]

def prose(notebook):
    "The sentences of a notebook, given as the text of its file."
    texts = [''.join(c['source']) for c in json.loads(notebook)['cells']
             if c['cell_type'] == 'markdown']
    return [s for text in texts for s in sentences(text)]

def measures(found):
    "Words, median length and share of long ones, of some sentences."
    lengths = [len(words(s)) for s in found] or [0]
    return sum(lengths), median(lengths), sum(n > LONG for n in lengths)/len(lengths)

def git(*args):
    p = subprocess.run(['git', *args], cwd=root, capture_output=True, encoding='utf-8')
    return p.stdout if p.returncode == 0 else sys.exit(p.stderr.strip().splitlines()[-1])

def notebooks(rev=None):
    "{path relative to nbs/: text} of the notebooks as they are, or as a revision has them."
    if not rev:
        files = sorted((root/'nbs').rglob('*.ipynb'))
        return {f.relative_to(root/'nbs').as_posix(): f.read_text(encoding='utf-8') for f in files}
    names = git('ls-tree', '-r', '--name-only', rev, 'nbs').splitlines()
    return {name.removeprefix('nbs/'): git('show', f'{rev}:{name}')
            for name in names if name.endswith('.ipynb')}

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebooks', nargs='*', metavar='NOTEBOOK', help='a part of its path')
    p.add_argument('--at', metavar='REV', help='as this revision of git has them')
    p.add_argument('--long', action='store_true', help=f'print the sentences over {LONG} words')
    a = p.parse_args()
    found = {name: prose(text) for name, text in notebooks(a.at).items()
             if not a.notebooks or any(part in f'nbs/{name}' for part in a.notebooks)}
    rows = {**found, 'all of them': sum(found.values(), [])}
    print(f'{"":28}{"words":>7}{"median":>8}{f"over {LONG}":>9}')
    for name, said in rows.items():
        total, middle, share = measures(said)
        print(f'{name:28}{total:7,}{middle:8.0f}{share:9.1%}')
        if not a.long or name not in found: continue
        for s in said:
            if len(words(s)) > LONG: print(f'  {len(words(s))}: {s}')

if __name__ == '__main__': main()
