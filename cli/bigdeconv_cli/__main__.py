"""``python -m bigdeconv_cli``."""

from bigdeconv_cli.main import main

if __name__ == "__main__":
    main()
