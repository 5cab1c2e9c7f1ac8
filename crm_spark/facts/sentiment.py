"""Whether a text praises or complains, in English and Chinese: words of two lists are counted, and negations turn them.

Nothing is learned from data, so a text is judged alike in every lake and at every time.
"""

from pyspark.sql import Column
from pyspark.sql import functions as F

# English entries are regular expressions of whole words, with _ for the gap between two.
_PRAISE = """
    good great excellent amazing awesome fantastic wonderful perfect(?:ly)? superb brilliant outstanding impressive
    impressed flawless(?:ly)? lovely love(?:d|s)? liked? likes enjoy(?:ed|able|s)? nice(?:ly)? happy happier pleased
    delighted satisfied satisfying glad thank(?:s|ful)? grateful appreciate(?:d|s)? helpful friendly polite
    courteous professional kind attentive patient knowledgeable quick(?:ly|er)? fast(?:er)? prompt(?:ly)? speedy
    smooth(?:ly)? easy easily simple convenient reliable sturdy durable comfortable comfy soft fresh tasty delicious
    beautiful(?:ly)? gorgeous elegant stylish affordable cheap(?:er)? bargain value worth(?:while)?
    recommend(?:ed|s|ing)? best better favou?rite superior pleasant pleasure well clean tidy efficient(?:ly)?
    effortless(?:ly)? seamless(?:ly)? generous thoughtful responsive trustworthy intuitive stunning exceed(?:ed|s)?
    surpassed ideal handy useful charming cheerful star life_saver spot_on top_notch hats_off five_stars works
    as_described on_time in_no_time early gem hassle_free stress_free a_joy kudos bravo yummy solid terrific
    exceptional(?:ly)? fabulous super painless transparent honest welcoming accommodating understanding went_out_of
    thrilled breeze wow fair richer crisp cozy cosy fluffy divine adore(?:d|s)? addicted obsessed
    compliment(?:s|ed)? smile smiling fun ten_out_of_ten a_must must_have over_the_moon step_up won_me_over
    out_of_the_box blown_away treat lifesaver game_changer masterpiece magic(?:al)? genius smart accurate(?:ly)?
    rich vibrant warm bright luxurious sleek calm caring above_and_beyond second_to_none thumbs_up good_as_new
    like_new ordering_again order_again buy_again buying_again coming_back come_back be_back got_it_right
    free_of_charge highest quality half_price goes_crazy resolved solved fixed sorted bonus pro successful(?:ly)?
    safely securely fluent(?:ly)? unbeatable unmatched loyal
"""
_COMPLAINT = """
    bad(?:ly)? worse worst terrible terribly horrible awful dreadful poor(?:ly)? disappoint(?:ed|ing|ment|s)?
    useless waste(?:d)? rude unhelpful unfriendly impolite arrogant incompetent unprofessional careless lazy ignored
    ignoring slow(?:er|ly)? late delay(?:ed|s)? never_arrived missing lost broken broke breaks damaged defective
    faulty cracked scratched torn stained dirty smell(?:s|y)? stink(?:s|ing)? stale rotten mou?ldy expired cheaply
    flimsy fragile uncomfortable ugly overpriced expensive pricey rip_off ripped_off scam fraud fake counterfeit
    misleading mislead lie(?:d|s)? lying dishonest cheat(?:ed|ing)? wrong incorrect mistake(?:s)? error(?:s)?
    bug(?:s|gy)? crash(?:es|ed|ing)? freez(?:es|ing) froze glitch(?:y|es)? fail(?:ed|s|ing|ure)? problem(?:s|atic)?
    issue(?:s)? complain(?:t|ts|ed)? refund annoy(?:ed|ing)? frustrat(?:ed|ing|ion)? angry furious upset unhappy
    unsatisfied dissatisfied unacceptable ridiculous pathetic disgust(?:ed|ing)? hate(?:d|s)? regret(?:ted)? avoid
    confusing complicated difficult impossible hassle nightmare shame(?:ful)? joke nonsense stopped_working gave_up
    hung_up shrunk shrank faded fades leak(?:s|ed|ing)? tasteless bland mess(?:y)? hidden stuck unreliable
    unresponsive unusable unclear inferior mediocre subpar shoddy
    too_(?:small|big|large|long|short|tight|loose|loud|thin|heavy|hard|sweet|salty|many|much|little) could_be_better
    could_have_been_better on_hold let_down letdown fell_apart falls_apart falling_apart return_it returned_it
    sending_(?:it|them)_back went_downhill no_longer overcharged charged_twice excuses clueless junk garbage rubbish
    trash crap sucks? beware disaster atrocious appalling lousy inconvenient misled unreadable cancelled? lame
    zero_stars one_star stay_away keep_away filthy scratchy itchy itches slimy soggy cold_food pushy denied denies
    refused refuses blisters wobbles wobbly rattles? squeaks? noisy creaks? dead died dies ruined ruins
    spoil(?:ed|t) burn(?:t|s|ed) burning shattered dented bent ripped tore tearing shrinks leaky drain(?:s|ed)?
    past_its came_off come_off fell_off falls_off peel(?:s|ed|ing)? pilling chipped wilted sour bitter dry soaked
    choked? sick ill pain(?:ful)? hurts? unsafe dangerous hazard tacky gimmick clunky laggy lag(?:s|ging)? spam
    spammed pop_ups popups ads nowhere vanished disappeared nobody chasing chase waiting waited queues? weeks
    months_later
    unanswered robot scripted runaround passed_around blame(?:d|s)? false daylight_robbery robbery money_back
    cardboard overrated overhyped underwhelm(?:ed|ing)? meh worthless pointless unfinished blurry blurred fuzzy
    locked_out log_in_fails shocking shocked insult(?:ed|ing)? dismissive condescending patroni[sz]ing sloppy sneaky
    robbed insane
"""
_CHINESE_PRAISE = """
    不错 好评 好用 好看 好吃 好喝 很好 挺好 真好 太好 最好 好 棒 赞 满意 喜欢 喜爱 爱了 优秀 优质 完美 出色 一流
    专业 热情 耐心 周到 贴心 细心 用心 亲切 友好 礼貌 负责 靠谱 快 迅速 及时 准时 神速 高效 方便 便捷 省心 省事 放心
    舒服 舒适 柔软 结实 耐用 牢固 扎实 精致 精美 漂亮 美观 大方 时尚 高档 新鲜 美味 可口 香 实惠 便宜 划算 超值
    物美价廉 性价比高 物有所值 物超所值 值 推荐 回购 再来 还会来 会再 继续支持 支持 感谢 谢谢 惊喜 开心 高兴 愉快
    感动 点赞 给力 良心 诚信 正品 合适 合身 清晰 流畅 简单 干净 整洁 没得说 没毛病 无可挑剔 挑不出 五星 满分 爽 完好
    如期 顺利 顺畅 安心 称心 如意 到位 很稳 稳定 不愧 名不虚传 一如既往 超出预期 齐全 丰富 有效 省钱 种草 回头客
    老顾客 yyds 绝了 无敌 细腻 清爽 物美 周全 温柔 解决了 安利 吹爆 爱不释手 厚实 厚道 厚度 有面子 百搭 显瘦 显白
    亲民 白菜价 神器 宝藏 闭眼入 必入 必买 值得 真香 上档次 高级 质感 清楚 轻便 灵敏 静音 续航 秒回 秒杀 当天 次日
    意外之喜 眼前一亮 赞不绝口 竖大拇指 大拇指 点个赞 杠杠的 没话说 完胜 治愈 暖心 暖 甜 鲜 嫩 酥 脆 入味 有嚼劲
    保暖 透气 吸水 蓬松 顺滑 丝滑 滋润 不粘 不刺激 不伤 不累 不贵 不后悔 不费 不卡 不掉 不起球 不褪色 不变形 不油
    不腻 不漏 不影响 不吵 无异味 没异味 没味道 没有味道 主动 赔付 补发 二话不说 马上 立刻 立马 秒 准确 精准 牢靠
    称职 得力 讲解 详细 细致 合理 公道 实在 实诚
"""
_CHINESE_COMPLAINT = """
    差 差评 差劲 糟 糟糕 坏 烂 垃圾 破 破损 破了 裂 脏 臭 难闻 异味 难吃 难喝 难用 难看 丑 慢 迟 晚了 拖 延误 耽误
    久 贵 坑 骗 欺骗 忽悠 假货 假的 虚假 山寨 劣质 次品 残次 失望 后悔 生气 气死 愤怒 无语 恶心 恶劣 敷衍 冷漠 推诿
    推卸 踢皮球 不耐烦 不理 没人理 无人 不管 投诉 退货 退款 退了 换货 问题 毛病 故障 错误 发错 送错 弄错 写错 漏发
    少发 缺 丢 丢失 卡顿 卡死 闪退 崩溃 死机 打不开 用不了 踩雷 避雷 拉黑 浪费 麻烦 复杂 吵 掉色 褪色 起球 缩水 变形
    脱线 漏水 漏 松动 色差 货不对板 图文不符 不符 与描述 不一 太小 太大 太薄 太硬 太重 偏小 偏大 过期 变质 发霉
    不新鲜 粗糙 态度差 不好 不行 不值 不会再 再也 最后一次 别买 不要买 慎买 谨慎 智商税 割韭菜 涨价 失效 没用 没效果
    没反应 没有回复 没人 打不通 不给 拒绝 霸王 糊弄 应付 水货 瑕疵 划痕 断了 掉了 乱 莫名其妙 刺鼻 难受 疼 不舒服
    翻车 鸡肋 离谱 吃亏 上当 黑心 坑人 不专业 瞎 催 扣费 乱扣 一言难尽 折腾 缩 受不了 扎人 发痒 过敏 烫 爆炸 没电
    卸载 关不掉 广告太多 抢劫 抢钱 刷的 刷单 刷好评 形同虚设 临期 看不懂 不如 晃 摇晃 塌 裂开 开胶 掉漆 生锈 断裂 断
    漏电 漏液 漏气 失灵 失真 杂音 噪音 发热 发黄 发黑 发酸 馊 苦 腥 油腻 硌 磨脚 勒 闷 起泡 掉毛 掉渣 掉粉 串味 串色
    沾色 结块 虫 头发 异物 拉肚子 空包 空盒 少了 少一 漏了 错的 发成 送到别 没送 没收到 收不到 不发货 没发货 不送
    不退 不换 不赔 不认 不承认 不回 不接 不给退 不好用 不好看 不好吃 不耐用 不合适 不合身 不值得 不推荐 不靠谱
    不满意 不负责 不解决 不灵 不准 不清楚 不清晰 不如意 不厚道 没修好 没解决 没下文 没结果 没诚意 没耐心 没有诚意
    没有耐心 套路 坑爹 杀熟 先涨后降 虚标 缩短 缩减 偷工减料 以次充好 挂羊头 服了 呵呵 心累 心寒 寒心 气人 火大 窝火
    闹心 糟心 堵心 添堵 遭罪 崩 闪 卡 转圈 登录不 登不上 白买 白花 白等 白跑 打水漂 血亏 亏 冤 交智商 倒闭 差远
"""
_EMOJI_PRAISE = "👍 😊 😀 😃 😄 😁 🙂 ❤ 🥰 😍 🎉 💯 👏 🌟 ⭐ 😘 🤩"
_EMOJI_COMPLAINT = "👎 😡 😠 😤 🤬 😞 😢 😭 💔 🙄 😒 😩 😫 🤮 😑"

_NEGATIONS = """
    not no never nothing hardly barely without nor neither none lack(?:s|ed|ing)? cannot cant wont dont didnt doesnt
    isnt wasnt arent werent couldnt wouldnt shouldnt hasnt havent hadnt far_from
"""
_CHINESE_NEGATIONS = "不 没有 没 别 未 无 毫无 并非 谈不上 算不上 称不上"
_BETWEEN = """
    a an the very really so too at all that any been be to particularly especially even have had has it of is was as
    quite exactly one single me my us
"""
_CHINESE_BETWEEN = (
    "很 太 是 那么 这么 怎么 够 算 什么 特别 非常 有 让人 让我 得 觉得 想象中 想象 中的 的 任何 一点 会 能 再 多"
)
# Chinese words that hold one of the listed ones and say something else.
_CHINESE_OTHERS = """
    好几 好久 好多 好像 只好 正好 刚好 好不容易 最好是 你好 您好 幸好 好歹 还好 快递 快件 快餐 尽快 快要 值班 价值
    快到 一般般 贵公司 贵店 破费 多久 久等 差不多 没想到 不仅 不但 不只 不光 问题都 点赞数 不久 请问 问一下 好的
"""


def parse_sentiment(text: Column) -> Column:
    """1 if a text praises more than it complains, -1 if it is the other way round, 0 otherwise; NULL without a text."""
    plain = F.regexp_replace(F.lower(text), "[\u2019`]", "'")
    plain = F.regexp_replace(plain, "n't", " not")
    plain = F.regexp_replace(plain, "|".join(_CHINESE_OTHERS.split()), "")
    # A negation ends with its clause.
    plain = F.regexp_replace(plain, "[.,;:!?\u2026\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]+|但是|但|不过", "|")
    plain = F.regexp_replace(plain, "[^\\p{L}\\p{So}|]+", " ")
    words = F.regexp_replace(F.regexp_replace(plain, "([a-z]+) ?", " $1 "), " but ", "|")
    praise = _any(_PRAISE, f"{_CHINESE_PRAISE} {_EMOJI_PRAISE}")
    complaint = _any(_COMPLAINT, f"{_CHINESE_COMPLAINT} {_EMOJI_COMPLAINT}")
    negated = f"{_any(_NEGATIONS, _CHINESE_NEGATIONS)}{_any(_BETWEEN, _CHINESE_BETWEEN)}{{0,3}}"

    def count(pattern: str) -> Column:
        return F.regexp_count(words, F.lit(pattern))

    turned = count(negated + complaint) - count(negated + praise)
    score = count(praise) - count(complaint) + 2 * turned
    return F.when(F.trim(text) != "", F.signum(score).cast("int"))


def _any(english: str, chinese: str) -> str:
    """A pattern of any English entry between spaces, or any Chinese one."""
    words = "|".join(english.split()).replace("_", "  ")
    return f"(?: (?:{words}) |{'|'.join(sorted(chinese.split(), key=len, reverse=True))})"
