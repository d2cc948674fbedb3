"""English words that say little about a picture: function words and the furniture of captions."""

STOP_WORDS = frozenset(
    """
    a about above across after again against all almost alone along already also although always am among an and
    another any anybody anyone anything are around as aside at away back be became because become been before behind
    being below beneath beside besides best better between beyond both but by came can can't cannot come could
    couldn't did didn't do does doesn't doing don't done down during each either else enough even ever every everybody
    everyone everything far few first for from further gave get gets getting give given go goes going gone good got
    great had hadn't half has hasn't have haven't having he hence her here hers herself him himself his how however i
    if in indeed instead into is isn't it its itself just kept knew know known last least left less let like little
    long look looked looking looks made make makes making many may maybe me might mine more moreover most much must my
    myself near nearly neither never next no nobody none nor not nothing now nowhere of off often old on once one ones
    only onto or other others otherwise ought our ours ourselves out over own part perhaps pretty put quite rather
    really right said same saw say says see seem seemed seems seen several shall she should shouldn't side since so
    some somebody someone something sometimes somewhere soon still such take taken takes tell than that the their
    theirs them themselves then there thereby therefore these they thing things think this those though thought three
    through throughout thus till to together told too took top toward towards turned two under unless until up upon us
    used using very want was wasn't way we well went were weren't what whatever when whenever where wherever whether
    which while who whole whom whose why will with within without won't would wouldn't yes yet you your yours yourself
    yourselves appears background camera close-up closeup front image middle photo photograph picture shown showing
    shows scene various view four five six ten different large small big mr mrs miss sir madam dear oh ah
    """.split()
)
