"""python -m minicollab"""

from minicollab.cli import main

if __name__ == "__main__":
    main()
