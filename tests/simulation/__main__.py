import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
from simulation.driver import simulate
import time
t=time.time()
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    o = simulate(seed)
    if o.violations:
        print("SEED", seed, o.violations[:3])
        if len(sys.argv)>3: print(o.story)
    else: print(seed, o.digest, o.commits, round(time.time()-t,2))
