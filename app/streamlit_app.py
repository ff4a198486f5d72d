"""Where `streamlit run app` begins: Streamlit serves the application below, and runs this file to draw a page.

streamlit run app                          from the root of the repository
streamlit run app -- --trace FILE          opened on a trace, counts or a recording
streamlit run app -- --model DIR           opened on a model of the transformers library
"""

# ruff: noqa: E402  (the path must be set before our packages are imported)

from __future__ import annotations

import sys
from pathlib import Path

# Streamlit puts this file's folder on the path; packages are imported from the root.
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import streamlit as st

if __name__ == "__main__":  # Streamlit draws a page, or a test does
    from app.server import load_pages

    load_pages().join()  # two threads must not import the same modules at once
    from app.frame import draw

    draw()
else:  # the server imports this file; Streamlit looks for the next line without running it
    from app.api_beside_pages import routes
    from app.server import MIDDLEWARE, load_pages
    from moe_core.inference.ahead import wait_without_spinning

    wait_without_spinning()
    load_pages()
    application = st.App(__file__, routes=routes(), middleware=MIDDLEWARE)
