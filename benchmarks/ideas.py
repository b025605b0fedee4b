"""The log of the speedrun: what each idea gains at equal time.

    python benchmarks/ideas.py [NAME ...] [--seed 0] [--minutes 3]

Every idea is a change to one before it. It trains for the same minutes of wall clock in a process
of its own (idea_worker.py), draws 2,000 digits in 50 evaluations (DDIM, η = 1 unless it says
otherwise), and is judged. Rows go into results/speedrun-log.json; what is there is not measured
again (--again does)."""
import argparse, json, os, subprocess, sys, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
PATH = top/'results'/'speedrun-log.json'

# ---- the settings

REPORT_UNET = dict(channels=(32, 64, 96, 96), pad_to=32)
UNPADDED = REPORT_UNET | dict(pad_to=None)
SMALL_UNET = dict(channels=(64, 96, 96), in_channels=4, out_channels=4, pad_to=None,
                  attention=(False,)*3, head_dim=32)
WIDER_UNET = SMALL_UNET | dict(channels=(64, 128, 128))
REPORT = dict(network=REPORT_UNET, space='Pixels', process={},
              recipe=dict(batch_size=512, lr=1e-3))

def but(base, **changes):
    "A setting like `base` but for some changes. Process and recipe keep what is not named."
    keep = lambda k, v: isinstance(v, dict) and k != 'network'
    return base | {k: base[k] | v if keep(k, v) else v for k, v in changes.items()}

IDEAS = {}                                # {name: the columns of the log that describe the idea}

def idea(
    name,
    why, # why it should help
    source, # author and year
    base, # the idea that it changes; None: the first
    **changes # of the setting
):
    "Put an idea on the list."
    before = IDEAS[base]['setting'] if base else REPORT
    IDEAS[name] = dict(why=why, source=source, base=base, setting=but(before, **changes))

# ---- the report's network

idea('the report', 'where we start', 'the report', None)

idea('batch 64', 'eight times the steps for the same images', '', 'the report',
     recipe=dict(batch_size=64))

idea('warm-up, clipping', 'large first steps do damage that takes time to mend',
     'Goyal et al., 2017', 'batch 64', recipe=dict(warmup=100, clip_grad=1.))

idea('v', 'the network need not copy its input at high noise', 'Salimans & Ho, 2022',
     'warm-up, clipping', process=dict(predict='v'))

idea('x0', 'the same, more so', 'Salimans & Ho, 2022', 'warm-up, clipping',
     process=dict(predict='x0'))

idea('v, weighted as ε', 'is it the weights of the times, or what is asked for?', '',
     'warm-up, clipping', process=dict(predict='v', weighting='eps'))

idea('v, min-SNR', 'easy times shall not outweigh the rest', 'Hang et al., 2023', 'v',
     process=dict(weighting='min-snr'))

idea('v, weighted as x0', 'more weight on high noise', 'Salimans & Ho, 2022', 'v',
     process=dict(weighting='x0'))

idea('logit-normal', 'the middle is where it is decided', 'Esser et al., 2024', 'v',
     process=dict(times='logit-normal'))

idea('zero SNR, trailing', 'training and sampling begin at the same, pure noise',
     'Lin et al., 2024', 'v', process=dict(zero_snr=True), spacing='trailing')

idea('batch 32', 'more steps still', '', 'v', recipe=dict(batch_size=32))

idea('batch 128', 'a better gradient', '', 'v', recipe=dict(batch_size=128))

idea('rate 2e-3', 'there is little time', '', 'v', recipe=dict(lr=2e-3))

idea('rate 5e-4', 'the steps may be too large', '', 'v', recipe=dict(lr=5e-4))

idea('Muon', 'all directions of a kernel learn at the same rate', 'Jordan et al., 2024', 'v',
     recipe=dict(optimizer='muon'))

idea('Muon, rate 3e-3', 'it bears more', '', 'v', recipe=dict(optimizer='muon', lr=3e-3))

idea('transport', 'noise paired with the image next to it makes straighter ways',
     'Pooladian et al., 2023', 'v', trainer='Transport')

idea('v, sampled without noise', 'one way from noise to image', 'Song et al., 2021', 'v', eta=0.)

idea('transport, sampled without noise',
     'is it the fresh noise, paired with nothing, that spoils it?', 'Pooladian et al., 2023',
     'v, sampled without noise', trainer='Transport', eta=0.)

idea('times spread evenly', 'less noise in the gradient', 'Kingma et al., 2021', 'v',
     trainer='Stratified')

idea('crops', 'the border is black, and 24×24 needs no padding: 0.56 of the work', '', 'v',
     space='Cropped', network=UNPADDED)

# ---- another network

idea('folded', '2×2 pixels as channels: no wide maps', 'Shi et al., 2016', 'v',
     space='Whole', network=SMALL_UNET | dict(pad_to=16))

idea('crops, folded', 'both: 12×12, 6×6 and 3×3 positions', '', 'v',
     space='Folded', network=SMALL_UNET)

idea('crops, folded, logit-normal', 'what gained alone, together', '', 'crops, folded',
     process=dict(times='logit-normal'))

SMALL = 'crops, folded, logit-normal, batch 128'
idea(SMALL, 'small maps want large batches', '', 'crops, folded, logit-normal',
     recipe=dict(batch_size=128))

idea(SMALL + ', transformer',
     '36 patches of 4×4 pixels: matrix products run faster than convolutions',
     'Peebles & Xie, 2023', SMALL, net='Patches', network=dict(width=128, blocks=6, heads=4))

MUON = SMALL + ', Muon'
idea(MUON, 'all directions of a kernel learn at the same rate', 'Jordan et al., 2024', SMALL,
     recipe=dict(optimizer='muon'))

idea(MUON + ', wider', 'the time saved, spent on channels', '', MUON, network=WIDER_UNET)

idea(MUON + ', spread evenly', 'less noise in the gradient', 'Kingma et al., 2021', MUON,
     trainer='Stratified')

BEST = MUON + ', rate 2e-3'
idea(BEST, 'it bears more', '', MUON, recipe=dict(lr=2e-3))

idea(MUON + ', rate 4e-3', 'even more', '', BEST, recipe=dict(lr=4e-3))

idea(BEST + ', batch 256', 'a better gradient bears a higher rate', '', BEST,
     recipe=dict(batch_size=256))

idea(BEST + ', wider', 'the time saved, spent on channels', '', BEST, network=WIDER_UNET)

idea(MUON + ', transport', 'straighter ways', 'Pooladian et al., 2023', MUON, trainer='Transport')

idea(MUON + ', attention', 'what is far apart belongs together', '', MUON,
     network=SMALL_UNET | dict(attention=(False, True, True)))

idea(BEST + ', shorter average', 'three minutes are few steps to average over',
     'Karras et al., 2024', BEST, recipe=dict(ema=.98))

idea(BEST + ', longer average', 'or enough for a longer one', 'Karras et al., 2024', BEST,
     recipe=dict(ema=.998))

idea(BEST + ', growing average',
     'over the last tenth of the steps, however many there have been', 'Karras et al., 2024', BEST,
     trainer='Growing')

idea(BEST + ', one-cycle', 'rise for a third of the time, and higher, before falling',
     'Smith & Topin, 2018', BEST, recipe=dict(lr=4e-3, warmup=350))

idea(BEST + ', plain PyTorch', "what the engine's speed is worth: float32, no kernels of its own",
     '', BEST, trainer='Plain')

idea(BEST + ', transformer', 'the same, larger, with the winner of the optimisers',
     'Peebles & Xie, 2023', BEST, net='Patches', network=dict(width=192, blocks=6, heads=6))

# ---- the report's network again

idea('coarse first', 'steps on 14×14 pixels cost a quarter, and shapes come before edges',
     'Karras et al., 2018', 'logit-normal', trainer='CoarseFirst')

idea('logit-normal, Muon', "and in the report's own network", '', 'logit-normal',
     recipe=dict(optimizer='muon'))

idea('logit-normal, Muon, batch 128', "and in the report's own network", '',
     'logit-normal, Muon', recipe=dict(batch_size=128))

idea('crops, logit-normal, Muon', "the report's own network without the border", '',
     'logit-normal, Muon', space='Cropped', network=UNPADDED)

# what became of it: the recipes of the list of models
WINNERS = {'ddpm-fast': BEST, 'quick': 'logit-normal, Muon'}

def line(name):
    "What an idea is made of: itself, and what it builds on, the first first."
    base = IDEAS[name]['base']
    return (line(base) if base else []) + [name]

# ---- the log

def stored(): return json.loads(PATH.read_text(encoding='utf-8')) if PATH.exists() else []

def position(row): return list(IDEAS).index(row['idea']), row['minutes'], row['seed']

def matches(row, key): return key.items() <= row.items()

def store(row, key):
    "Put a row into the log, instead of the one with the same key."
    from mnistgen.lab.store import write_atomically
    rows = sorted([r for r in stored() if not matches(r, key)] + [row], key=position)
    text = json.dumps(rows, indent=1, ensure_ascii=False) + '\n'
    write_atomically(PATH, lambda tmp: tmp.write_text(text, encoding='utf-8'))

def measure(name, minutes, seed, n, grid):
    "Train and judge an idea in a fresh process: its numbers."
    job = json.dumps([IDEAS[name]['setting'], minutes, seed, n, time.time(), grid])
    p = subprocess.run([sys.executable, str(top/'benchmarks'/'idea_worker.py'), job],
                       env=os.environ | {'PYTHONPATH': str(top)}, stdout=subprocess.PIPE, text=True)
    if p.returncode: sys.exit(f'{name}: failed')
    return json.loads(p.stdout.splitlines()[-1])

def summary(r):
    "What is printed of a row."
    return (f"{r['idea']} ({r['minutes']:g} min, seed {r['seed']}): {r['steps']} steps, "
            f"{r['images_per_second']:.0f} images/s, FD {r['FD']:.2f} (∞ {r['FD∞']:.2f}; "
            f"real {r['floor']:.2f}), P {r['precision']:.3f} R {r['recall']:.3f}, "
            f"confident {r['confident']:.1%}, border {r['border']:.2f}")

def main(names, minutes, seed, n, again, out):
    from mnistgen.lab.device import device_info, pick_device
    from mnistgen.lab.store import versions
    if out: Path(out).mkdir(parents=True, exist_ok=True)
    for name in names or IDEAS:
        key = dict(idea=name, minutes=minutes, seed=seed, n=n)
        if not again and any(matches(r, key) for r in stored()): continue
        grid = f'{out}/{name}-{minutes:g}-{seed}.png' if out else None
        numbers = measure(name, minutes, seed, n, grid)
        code = {k: v for k, v in versions().items() if k in ('torch', 'commit')}
        device = device_info(pick_device('cpu'))['name']
        row = key | IDEAS[name] | dict(device=device) | code | numbers
        store(row, key)
        print(summary(row), flush=True)

def parser():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*')
    p.add_argument('--minutes', type=float, default=3.)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--n', type=int, default=2000)
    p.add_argument('--again', action='store_true')
    p.add_argument('--out', help='folder for grids')
    return p

if __name__ == '__main__':
    sys.path.insert(0, str(top))
    from mnistgen.lab.device import print_anything
    print_anything()
    p = parser()
    a = p.parse_args()
    if odd := [k for k in a.names if k not in IDEAS]:
        p.error(f"unknown: {', '.join(odd)}; there are {', '.join(IDEAS)}")
    main(a.names, a.minutes, a.seed, a.n, a.again, a.out)
