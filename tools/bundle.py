"""Make a finished run part of the package: `python tools/bundle.py runs/ddpm`.

Copies its weights to mnistgen/weights/, its record and stage images to results/. What was measured on other weights of that
name is then out of date: run the slow cells of the model's chapter (`python tools/refresh.py --flags slow nbs/01_ddpm.ipynb`)."""
import json, shutil, sys
from pathlib import Path

top = Path(__file__).parent.parent

def bundle(run):
    "Copy weights, record and stage images of the run in the folder `run` to where the package keeps them."
    record, = [r for r in (json.loads(p.read_text()) for p in Path(run).glob('*.json')) if 'history' in r]
    name = record['model']
    stages = sorted(Path(run).glob(f'{name}-epoch-*.png'))
    for old in (top/'results').glob(f'{name}-epoch-*.png'): old.unlink()
    earlier = json.loads((top/'results'/f'{name}.json').read_text()) if record.get('start') else None
    for f, to in [(Path(run)/f'{name}.safetensors', 'mnistgen/weights'), (Path(run)/f'{name}.json', 'results'), *((s, 'results') for s in stages)]:
        (top/to).mkdir(exist_ok=True)
        shutil.copyfile(f, top/to/f.name)
        print(f'{to}/{f.name}')
    if earlier and earlier['history'][-1]['eval_loss'] == record['start']['eval_loss']:          # these weights were trained further: keep how they came to be
        (top/'results'/f'{name}.json').write_text(json.dumps(record | {'before': earlier}, indent=1) + '\n')

if __name__ == '__main__': bundle(sys.argv[1])
