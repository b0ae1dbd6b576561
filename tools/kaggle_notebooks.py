"Write the notebooks that are pushed to Kaggle, `kaggle/NN_x/NN_x.ipynb`, from the chapters' pages."
from pathlib import Path

from vlmtemporal.pushing import write_job_notebooks

ROOT = Path(__file__).parent.parent

if __name__ == '__main__':
    for path in write_job_notebooks(ROOT): print(path.relative_to(ROOT))
