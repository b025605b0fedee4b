"""Build every stored result again from the weights: `make results`, or

    python tools/results.py [--list | --dry-run] [--only WORD] [--again]

Runs the steps below in their order: what is stored beside the weights, tools/measure.py, the slow
cells of the notebooks, the parts of the benchmarks. It takes days on a CPU, so it goes on where it
was stopped: a step that has been done with the weights that are bundled now is not run again
(runs/results.json remembers), and of the others most keep what is there already, row by row.

--list, --dry-run: print the steps, which of them are to do, and the files that they write; run nothing
--only WORD: the steps in whose command or files the word is
--again: run steps that are done as well; what they wrote before moves to runs/results-before/

What belongs to a training (its record, its stage images, what was drawn with weights of its stages)
is made by it and not here: mnistgen train NAME, then tools/bundle.py. ASIDE lists the files."""
import argparse
import fnmatch
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))
RESULTS, STAMPS = top/'results', top/'runs'/'results.json'

def measured(*names): return [(f'tools/measure.py {n}', [f'{n}-evaluation.json']) for n in names]
def slow(nb, *files): return [(f'tools/refresh.py --flags slow nbs/{nb}', list(files))]
def part(script, parts, name, *more, files='{name}-{part}.json'):
    "Parts of guidance.py or flows.py, and what they write."
    written = [files.format(name=name, part=p) for p in parts.split()]
    return [(' '.join([f'benchmarks/{script}.py', parts, *more]), written)]

EPS = 'runs/cfg-fast-eps/cfg-fast.safetensors'
EPS12 = 'runs/cfg-fast-eps12/cfg-fast.safetensors'
TRAIN_EPS = '-m mnistgen.zoo.cli train cfg-fast --budget report --resume'

STEPS = [                                 # (arguments of python, files in results/ that it writes)
    ('tools/encode.py vae', []),          # into mnistgen/weights/, as the next
    ('tools/judge.py', []),
    *measured('ddpm', 'ddpm-fast', 'ldm', 'ldm-fast', 'cfg-concat', 'cfg-xattn', 'cfg-fast', 'rf',
              'rf-latent', 'rf-fast', 'one-step', 'attributes-fast', 'cfg-attributes'),
    *slow('01_ddpm.ipynb', 'ddpm-16x1000.*', 'ddpm-strip.npz', 'ddpm-loss-by-time.json',
          'ddpm-grey.*'),
    *slow('02_ddim.ipynb', 'ddim-50-eta?-n1000.*', 'ddim-steps.npz', 'ddim-seconds.json',
          'ddim-inversion.npz', 'ddim-walks.npz', 'ddim-umap.npz'),
    *slow('03_vae.ipynb', 'vae-errors.npz'),
    *slow('04_ldm.ipynb', 'ldm-numbers.json', 'ldm-ddpm.npz'),
    *slow('zoo/evaluation.ipynb', 'evaluation-failures.json', 'evaluation-umap.npz'),
    ('benchmarks/autoencoders.py vae vae-light', ['vae-evaluation.json', 'vae-light-evaluation.json']),
    ('benchmarks/autoencoders.py --betas', ['vae-betas.json', 'vae-beta-*.png']),
    ('benchmarks/autoencoders.py --speed', ['vae-speed.json']),
    ('benchmarks/latents.py --failures', ['ldm-failures.json', 'ldm-failure-*.png']),
    ('benchmarks/latents.py --failures --recipe report', []),            # rows of the same file
    ('benchmarks/latents.py --starts', ['ldm-starts.json', 'ldm-start-*.png']),
    ('benchmarks/latents.py --starts --recipe report', []),
    ('benchmarks/latents.py --variants', ['ldm-variants.json', 'ldm-variant-*.png']),
    ('benchmarks/latents.py --edges', ['ldm-edges.json']),
    *part('guidance', 'scales extreme best', 'cfg-fast'),
    *part('guidance', 'ddpm', 'cfg-fast', files='{name}-{part}.*'),
    *part('guidance', 'sweep', 'cfg-fast', files='{name}-{part}.npz'),
    *part('guidance', 'sweep', 'cfg-concat', '--model cfg-concat', files='{name}-{part}.npz'),
    *part('guidance', 'sweep', 'cfg-xattn', '--model cfg-xattn', files='{name}-{part}.npz'),
    *part('guidance', 'scales best', 'cfg-concat', '--model cfg-concat --lean'),
    *part('guidance', 'scales best', 'cfg-xattn', '--model cfg-xattn --lean'),
    *part('guidance', 'time', 'cfg'),
    *part('guidance', 'auto', 'ldm-fast', '--model ldm-fast'),
    *part('attributes', 'negative two', 'cfg-fast'),
    *part('attributes', 'asked settings', 'attributes-fast'),
    *part('attributes', 'asked settings', 'cfg-attributes', '--model cfg-attributes'),
    ('benchmarks/attributes.py decoded', ['attributes-decoded.json']),
    (f'{TRAIN_EPS} --out runs/cfg-fast-eps', []),
    *part('guidance', 'scales', 'cfg-fast-eps', f'--weights {EPS} --name cfg-fast-eps'),
    *part('guidance', 'ddpm', 'cfg-fast-eps', f'--weights {EPS} --name cfg-fast-eps',
          files='{name}-{part}.*'),
    (f'{TRAIN_EPS} --epochs 12 --out runs/cfg-fast-eps12', []),
    *part('guidance', 'ddpm', 'cfg-fast-eps12', f'--weights {EPS12} --name cfg-fast-eps12',
          files='{name}-{part}.*'),
    *part('flows', 'curve losses', 'ldm-fast', '--model ldm-fast'),
    *part('flows', 'curve losses blur guided', 'rf-fast', '--model rf-fast'),
    *part('flows', 'curve losses', 'rf-latent', '--model rf-latent --lean'),
    *part('flows', 'losses', 'rf', '--model rf'),
    *part('flows', 'blur', 'cfg-fast', '--model cfg-fast'),
    *part('flows', 'choices time', 'rf'),
    *part('few_steps', 'minutes ways decoders time', 'few-steps'),
    ('benchmarks/few_steps.py curve bars',
     ['one-step-curve.json', 'one-step-bars.json', 'one-step-teacher.json']),
    *slow('07_comparison.ipynb', 'comparison-umap.npz'),
    ('benchmarks/guide.py', ['guide-latency.json']),
    ('benchmarks/engine.py', ['benchmark-engine.json']),
    ('benchmarks/ideas.py', ['speedrun-log.json', 'speedrun-log-*.png']),
    ('benchmarks/speedrun.py --minutes 10 --all', ['speedrun-10.json', 'speedrun-10-*.png']),
    ('benchmarks/speedrun.py --minutes 60 --all', ['speedrun-60.json', 'speedrun-60-*.png']),
]

# made by a training, with its weights or those of its stages
ASIDE = {
    '{model}.json, {model}-epoch-*.png': 'mnistgen train {model}, then tools/bundle.py runs/{model}',
    'ddpm-quick.json, ddpm-quick.png': 'mnistgen train ddpm',
    'cfg-fast-eps.json': f'the record of: python {TRAIN_EPS}',
    'vae-latents.npz': 'python benchmarks/autoencoders.py --stages runs/vae, which has kept stages',
}

def written_by(name):
    "The commands of the steps that write a file of results; what is said of it in ASIDE, if anything."
    found = [command for command, files in STEPS if any(fnmatch.fnmatch(name, f) for f in files)]
    from mnistgen.zoo.models import MODELS
    for patterns, how in ASIDE.items():
        for model in MODELS if '{model}' in patterns else ['']:
            names = patterns.format(model=model).split(', ')
            if any(fnmatch.fnmatch(name, p) for p in names): found.append(how.format(model=model))
    return list(dict.fromkeys(found))

def weights():
    "A hash of all bundled weights, judges' and models': what a step that is done was done with."
    from mnistgen.lab.store import WEIGHTS, read_header
    made_here = 'latents-', 'judge-real'
    files = sorted(f for f in WEIGHTS.glob('*.safetensors') if not f.name.startswith(made_here))
    text = ' '.join(read_header(f)['checksum'] for f in files)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

def stamps(): return json.loads(STAMPS.read_text()) if STAMPS.exists() else {}

def stamp(command, now):
    from mnistgen.lab.store import write_atomically
    STAMPS.parent.mkdir(exist_ok=True)
    text = json.dumps(stamps() | {command: now}, indent=1) + '\n'
    write_atomically(STAMPS, lambda tmp: tmp.write_text(text))

def move_aside(files):
    "What a step wrote before goes to runs/results-before/, so that it is measured anew."
    before = top/'runs'/'results-before'
    before.mkdir(parents=True, exist_ok=True)
    for pattern in files:
        for f in RESULTS.glob(pattern): shutil.move(f, before/f.name)

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--list', '--dry-run', action='store_true')
    p.add_argument('--only', default='')
    p.add_argument('--again', action='store_true')
    a = p.parse_args(argv)
    steps = [(c, files) for c, files in STEPS if a.only in f"python {c} {' '.join(files)}"]
    if not steps: sys.exit(f'no step has {a.only!r} in its command or its files: --list shows them')
    now = weights()
    for i, (command, files) in enumerate(steps, 1):
        done = stamps().get(command) == now and not a.again
        what = f"[{i}/{len(steps)}] {'done ' if done else 'to do'} python {command}"
        print(what + (f"  -> {' '.join(files)}" if files else ''), flush=True)
        if a.list or done: continue
        if a.again: move_aside(files)
        code = subprocess.run([sys.executable, *command.split()], cwd=top).returncode
        if code: sys.exit(f'python {command}: exit {code}; make results goes on from there')
        stamp(command, now)

if __name__ == '__main__': main()
