"""Text in pictures."""


def literal(text):
    """
    Args:
        text (str): perhaps with dollar signs, as names of classes may have them.

    Returns:
        str: what matplotlib shows as `text`; it would take what is between dollar signs for a
        formula, and fail if it is none.
    """
    return text.replace("$", r"\$")
