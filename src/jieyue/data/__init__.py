"""From files to rows: questions with their passages, tokens with their places, windows, batches."""
