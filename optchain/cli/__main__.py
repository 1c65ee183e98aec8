import sys

from optchain.cli import main

sys.exit(main())
