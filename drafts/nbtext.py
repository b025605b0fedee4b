"to_txt NB TXT | to_nb TXT NB: cells as text; outputs and ids of cells with the same source are kept."
import json,sys,hashlib,difflib
from pathlib import Path
def join(x): return x if isinstance(x,str) else ''.join(x)
def to_txt(nb,txt):
    out=[]
    for c in json.load(open(nb))['cells']: out.append(f"%%%% {'md' if c['cell_type']=='markdown' else 'code'}\n{join(c['source'])}\n")
    Path(txt).write_text(''.join(out))
def to_nb(txt,nb):
    old=json.load(open(nb)) if Path(nb).exists() else dict(cells=[],metadata={"kernelspec":{"display_name":"python3","language":"python","name":"python3"}},nbformat=4,nbformat_minor=5)
    cells=[]
    for part in Path(txt).read_text().split('%%%% ')[1:]:
        kind,src=part.split('\n',1); src=src.rstrip('\n')
        cells.append(('markdown' if kind.strip()=='md' else 'code',src))
    key=lambda c:(c['cell_type'],join(c['source']).rstrip('\n'))
    pool={}
    for c in old['cells']: pool.setdefault(key(c),[]).append(c)
    used=set(); new=[]
    oldkeys=[key(c) for c in old['cells']]
    sm=difflib.SequenceMatcher(None,oldkeys,cells,autojunk=False)
    ids={}
    for tag,i1,i2,j1,j2 in sm.get_opcodes():
        if tag=='replace' :
            for a,b in zip(range(i1,i2),range(j1,j2)):
                if old['cells'][a]['cell_type']==cells[b][0]: ids[b]=old['cells'][a].get('id')
    taken=set()
    for j,k in enumerate(cells):
        if pool.get(k):
            c=pool[k].pop(0)
        else:
            i=ids.get(j) or hashlib.blake2b(f'{nb}{k}{j}'.encode(),digest_size=4).hexdigest()
            c=dict(cell_type=k[0],id=i,metadata={},source=[l for l in k[1].splitlines(True)])
            if k[0]=='code': c|=dict(execution_count=None,outputs=[])
        while c.get('id') in taken: c=dict(c,id=hashlib.blake2b((c['id']+str(j)).encode(),digest_size=4).hexdigest())
        taken.add(c.get('id')); new.append(c)
    old['cells']=new
    Path(nb).write_text(json.dumps(old,indent=1,ensure_ascii=False)+'\n')
globals()[sys.argv[1]](*sys.argv[2:])
