"""Who is asked: an OpenAI-compatible endpoint (``http``) or a model in this process (``local``), behind one interface."""
