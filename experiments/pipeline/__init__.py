"""Does learning reward and policy in one step reach what a pipeline of two models reaches?"""
