"""Make a finished run part of the package: `python tools/bundle.py runs/ddpm`.

Copies its weights to mnistgen/weights/, its record and stage images to results/. What was measured on other weights of that
name is then out of date: run the slow cells of the model's chapter (`python tools/refresh.py --flags slow nbs/01_ddpm.ipynb`)."""
import json, re, shutil, sys
from pathlib import Path

top = Path(__file__).parent.parent

def bundle(run):
    "Copy weights, record and stage images of the run in the folder `run` to where the package keeps them."
    record, = [r for r in (json.loads(p.read_text()) for p in Path(run).glob('*.json')) if 'history' in r]
    name = record['model']
    stages = sorted(Path(run).glob(f'{name}-epoch-*.png'))
    further = record.get('start', {}).get('epochs', 0)                # of weights that were trained further, epochs are counted on, and the earlier pictures stay
    if not further:
        for old in (top/'results').glob(f'{name}-epoch-*.png'): old.unlink()
    earlier = json.loads((top/'results'/f'{name}.json').read_text()) if further else None
    def count_on(s): return re.sub(r'epoch-(\d+)', lambda m: f'epoch-{int(m[1]) + further:03d}', s.name)
    for f, to in [(Path(run)/f'{name}.safetensors', f'mnistgen/weights/{name}.safetensors'), (Path(run)/f'{name}.json', f'results/{name}.json'), *((s, f'results/{count_on(s)}') for s in stages)]:
        (top/to).parent.mkdir(exist_ok=True)
        shutil.copyfile(f, top/to)
        print(to)
    if earlier and earlier['history'][-1]['eval_loss'] == record['start']['eval_loss']:          # these weights were trained further: keep how they came to be
        (top/'results'/f'{name}.json').write_text(json.dumps(record | {'before': earlier}, indent=1) + '\n')

if __name__ == '__main__': bundle(sys.argv[1])
