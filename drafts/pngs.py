"print a notebook's outputs and write its PNGs to png"
import json,sys,base64,os
os.makedirs('png',exist_ok=True)
nb=json.load(open(sys.argv[1])); only=set(map(int,sys.argv[2:]))
for i,c in enumerate(nb['cells']):
    if c['cell_type']!='code' or only and i not in only: continue
    for o in c.get('outputs',[]):
        d=o.get('data',{})
        if 'image/png' in d:
            p=f'png/{i}.png'; open(p,'wb').write(base64.b64decode(''.join(d['image/png']))); print(i,p)
        elif 'text/markdown' in d: print(i,''.join(d['text/markdown']))
        elif 'text/plain' in d: print(i,''.join(d['text/plain']))
        elif 'text' in o: print(i,''.join(o['text']))
