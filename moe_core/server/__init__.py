"""The API over HTTP. Its libraries (fastapi, uvicorn) are the extra `serve`; nothing else of Moescope imports them."""
