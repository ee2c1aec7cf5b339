"""ResNet-50 → LSTM, with attention over regions or with GPT-2 as the language head."""
