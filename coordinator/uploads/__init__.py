"""Files that come in parts, as `/v1/uploads` of the OpenAI API has them."""
