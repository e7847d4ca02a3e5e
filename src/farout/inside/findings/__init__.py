"""One kind of finding a file: each has ``find(recording, costs)``, which reads facts and says what they mean."""
