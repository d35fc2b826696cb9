"""Reference images from untrusted input: fetched by URL, decoded, made safe."""
