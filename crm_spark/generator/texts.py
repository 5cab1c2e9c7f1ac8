"""Words that generated texts are made of. What scores texts has its own: neither is made from the other."""

NAMES = {
    "en": (
        ("Ada", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo"),
        ("Archer", "Baker", "Carter", "Dyer", "Fisher", "Mason", "Miller", "Porter", "Smith", "Taylor", "O'Neil"),
    ),
    "zh": (
        ("王", "李", "张", "刘", "陈", "杨", "赵", "黄", "周", "吴"),
        ("芳", "伟", "敏", "静", "丽", "强", "磊", "军", "洋", "勇", "艳", "杰"),
    ),
}
CITIES = ("Ashford", "Bremen", "Chester", "Dijon", "Erfurt", "Ghent", "Leeds", "Lille", "Mainz", "Parma", "Siena")
REGIONS = ("north", "east", "south", "west")

# By language and sentiment: openings and verdicts, joined into one text.
FEEDBACK = {
    ("en", 1): (
        ("The parcel came early", "I asked for help twice", 'My "second" order, same shop', "Ordered on Monday"),
        (
            "and I am delighted",
            "and everything fits perfectly",
            "and I would buy it again",
            "wonderful service, thanks",
        ),
    ),
    ("en", 0): (
        ("The parcel came on Friday", "I ordered the blue one", "Bought it for the office", "Second order"),
        ("it is as described", "no more to say", "it does what it must", "the size is the usual one"),
    ),
    ("en", -1): (
        ("The parcel came two weeks late", "I wrote three times", "The lid was cracked, the box wet", "Wrong colour"),
        ("and nobody answered", "and I want my money back", "a waste of time", "I am very disappointed"),
    ),
    ("zh", 1): (("快递很快", "第二次购买", "客服很耐心"), ("非常满意", "质量很好", "下次还会再来")),
    ("zh", 0): (("周五收到", "给公司买的", "蓝色的那款"), ("和描述一样", "没什么特别的", "尺寸正常")),
    ("zh", -1): (("等了两个星期", "盒子破了", "打了三次电话"), ("没有人回复", "太失望了", "要求退款")),
}
