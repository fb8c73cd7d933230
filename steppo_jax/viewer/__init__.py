"""What a run did, looked at in the browser.

The room reads run folders and writes nothing into them but labels. It imports
no JAX: what needs a model (the credit of single tokens) is computed by a
process of its own.
"""
