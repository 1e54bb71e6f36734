"""One thread for every test process: two workers on two cores, and results that do not depend on the machine."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
