"""What can be wrong with a file of users or rules.
Knows no file.
"""


class AccessFileError(Exception):
    """A file of users, rules or keys can't be used; the message names the file, and the line where there is one."""
