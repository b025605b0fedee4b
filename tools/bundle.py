"""Make a finished run part of the package: `python tools/bundle.py runs/ddpm`.

Copies its weights to mnistgen/weights/, its record and stage images to results/, and writes how long
it was trained into mnistgen/weights/minutes.json, by the checksum of the weights. What was measured
on other weights of that name is then out of date: run the slow cells of the model's chapter
(`python tools/refresh.py --flags slow nbs/01_ddpm.ipynb`)."""
import argparse
import json
import re
import shutil
import sys
from pathlib import Path

top = Path(__file__).parent.parent

def count_on(name, epochs):
    "The name of a stage image of weights that had been trained for `epochs` epochs before."
    return re.sub(r'epoch-(\d+)', lambda m: f'epoch-{int(m[1]) + round(epochs):03d}', name)

def copy(source, to):
    (top/to).parent.mkdir(exist_ok=True)
    shutil.copyfile(source, top/to)
    print(to)

def minutes(record):
    "How long the runs of a record took, with those before."
    before = minutes(record['before']) if 'before' in record else 0
    return sum(e['seconds'] for e in record['history'])/60 + before

def remember(weights, took):
    "Where `mnistgen compare` finds it, also without a clone: headers of older weights do not say it."
    sys.path.insert(0, str(top))
    from mnistgen.lab.store import read_header
    file = top/'mnistgen/weights/minutes.json'
    known = json.loads(file.read_text()) if file.exists() else {}
    known[read_header(weights)['checksum']] = round(took, 2)
    file.write_text(json.dumps(known, indent=1) + '\n')
    print(file.relative_to(top))

def record_of(start):
    "The stored record of the weights that a run began with; None without any."
    for file in sorted((top/'results').glob('*.json')) if start else ():
        record = json.loads(file.read_text())
        if not isinstance(record, dict) or not record.get('history'): continue
        if record['history'][-1].get('eval_loss') == start['eval_loss']: return record

def bundle(run):
    "Copy weights, record and stage images of the run in the folder `run` to where they are kept."
    run = Path(run)
    records = [json.loads(p.read_text()) for p in run.glob('*.json')]
    records = [r for r in records if 'history' in r]
    if len(records) != 1:
        sys.exit(f'{run}: {len(records)} records of runs there, give the folder of one finished run')
    record, = records
    name = record['model']
    kept = top/'results'/f'{name}.json'
    # of weights that were trained further, epochs are counted on, and the earlier pictures stay
    further, earlier = record.get('start', {}).get('epochs', 0), record_of(record.get('start'))
    if not further or earlier and earlier['model'] != name:
        for old in (top/'results').glob(f'{name}-epoch-*.png'): old.unlink()
    copy(run/f'{name}.safetensors', f'mnistgen/weights/{name}.safetensors')
    copy(run/f'{name}.json', f'results/{name}.json')
    for stage in sorted(run.glob(f'{name}-epoch-*.png')):
        copy(stage, f'results/{count_on(stage.name, further)}')
    took = minutes(record)
    if earlier:                           # keep how the weights came to be
        kept.write_text(json.dumps(record | {'before': earlier}, indent=1) + '\n')
        took += minutes(earlier)
    remember(top/f'mnistgen/weights/{name}.safetensors', took)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', help='the folder of a finished run')
    bundle(p.parse_args().run)
