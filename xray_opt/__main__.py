"""``python -m xray_opt`` is ``xray-opt``."""

from xray_opt.cli import main

if __name__ == "__main__":
    main()
