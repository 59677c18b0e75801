"""Architecture search on a proxy: are networks ranked by a distilled set as they are by the whole one?"""
