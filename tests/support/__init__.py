"""What the tests share: problems with known answers, data of real formats, small runs."""
