"""How long a panel takes to draw: `python benchmarks/guide.py`, side by side in one run.

Ten digits, at ten evaluations of the network each (and at one, of a model that needs no more):
`sample` alone, and all that `guidance_lab` does for a picture, with the row of x̂0, what the judge
sees, and the PNG file. Writes results/guide-latency.json. The machine should have nothing else to
do; the median is stored beside the shortest time, the processor's time (with OMP_NUM_THREADS=1 what
an idle core would take, whatever else runs), and the load when it began."""
import argparse
import os
import sys
import time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
RESULTS = top/'results'
sys.path[:0] = [str(top), str(top/'benchmarks')]
from autoencoders import about
from mnistgen.lab.device import print_anything
from mnistgen.lab.store import Results
from mnistgen.zoo.guide import GuidanceLab, offered
from mnistgen.zoo.models import load

WAYS = {                                      # ten evaluations of each network
    'cfg-fast': (dict(sampler='ddim', steps=10, w=1.), dict(sampler='ddim', steps=5, w=3.)),
    'rf-fast': (dict(sampler='midpoint', steps=5, w=1.), dict(sampler='euler', steps=5, w=3.)),
    'cfg-concat': (dict(sampler='ddim', steps=10, w=1.),),
    'cfg-xattn': (dict(sampler='ddim', steps=10, w=1.),),
    'one-step': (dict(),),
}

def jobs():
    "{(model, plan, what): function}, and the evaluations of each."
    lab, out, nfes = GuidanceLab(), {}, {}
    for model, ways in WAYS.items():
        if model not in offered(conditional=True): continue
        g = load(model)
        for way in ways:
            settings = lab.usual(model, way.get('sampler')) | way
            kw = lab.arguments(settings)
            plan = str(g.plan(**kw))
            nfes[model, plan] = g.evaluations(**kw)
            out[model, plan, 'sample'] = lambda g=g, kw=kw: g.sample(**kw)
            out[model, plan, 'panel'] = lambda s=settings: [*lab.draw(s)]
    return out, nfes

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=25)
    print_anything()
    a = p.parse_args()
    work, nfes = jobs()
    load_before, times = os.getloadavg()[0], {k: [] for k in work}
    for i in range(a.rounds + 2):             # two rounds warm up
        for k, job in work.items():
            start = time.perf_counter(), time.process_time()
            job()
            end = time.perf_counter(), time.process_time()
            if i > 1: times[k].append([1e3*(b - a) for a, b in zip(start, end)])
    rows = []
    for (model, plan), nfe in nfes.items():
        row = dict(model=model, plan=plan, nfe=nfe)
        for what in ('sample', 'panel'):
            wall, cpu = map(sorted, zip(*times[model, plan, what]))
            row[what] = dict(median=wall[len(wall)//2], shortest=wall[0], cpu=cpu[len(cpu)//2])
        rows.append(row)
        print(f"{model}, {plan}: {row['sample']['median']:.0f} ms, in the panel "
              f"{row['panel']['median']:.0f} ms (shortest {row['panel']['shortest']:.0f}, "
              f"of the processor {row['panel']['cpu']:.0f})")
    Results(None, RESULTS).save('guide-latency', rounds=a.rounds, n=10, load=load_before, rows=rows,
                                **about())

if __name__ == '__main__': main()
