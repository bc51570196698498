"""Did it help, and how sure is that?"""
