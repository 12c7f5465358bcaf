"""Real people's recorded choices: does one model learn the shares of all of them?"""
